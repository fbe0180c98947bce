"""SmoothGrad: an average over noisy inputs, with a noise of its own."""

import math

import pytest
import torch
from torch import Tensor

import saliency
from saliency import smooth_grad
from tests import cases
from tests.cases import GENERAL, NOTICES


def recorder(inputs: list):
    """A method that notes its input and returns it."""

    def method(model, input, target, saliency_layer="", **options):
        """Recorded."""
        inputs.append(input)
        return input

    return method


@pytest.mark.parametrize("method", GENERAL, ids=lambda case: case.name)
@NOTICES
def test_without_noise_it_is_the_method(method):
    case = cases.IN_PLACE
    plain = method(case.model(), case.input(), 1, "features", resize=(7, 9), smooth=0.1)
    for samples in (1, 4):
        smoothed = smooth_grad(method, n_samples=samples, sigma=0)
        found = smoothed(case.model(), case.input(), 1, "features", resize=(7, 9), smooth=0.1)
        torch.testing.assert_close(found, plain, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("method", GENERAL, ids=lambda case: case.name)
@NOTICES
def test_it_is_the_mean_over_the_noisy_inputs(method):
    case, inputs = cases.IN_PLACE, []
    smooth_grad(recorder(inputs), n_samples=5, sigma=0.3, seed=3)(None, case.input(), 1)
    assert len(inputs) == 5
    maps = [method(case.model(), noisy, 1, "features") for noisy in inputs]
    found = smooth_grad(method, n_samples=5, sigma=0.3, seed=3)(case.model(), case.input(), 1, "features")
    torch.testing.assert_close(found, sum(maps) / 5, rtol=1e-12, atol=1e-15)


def test_the_noise_is_normal_and_in_each_images_own_range():
    """Its standard deviation is sigma (max - min) of the image: 2 x 0.5 and 20 x 0.5 here."""
    inputs: list[Tensor] = []
    image = torch.zeros(2, 1, 50, 40, dtype=torch.float64)
    image[0, 0, 0, 0], image[1, 0, 0, 0] = 2, -20
    smooth_grad(recorder(inputs), n_samples=20, sigma=0.5)(None, image, 0)
    noise = torch.stack(inputs) - image
    for n, deviation in enumerate((1.0, 10.0)):
        values = noise[:, n].flatten() / deviation
        # 40 000 draws: five standard errors of the mean, the deviation and the fourth moment.
        assert abs(values.mean().item()) < 5 / math.sqrt(40000)
        assert abs(values.std().item() - 1) < 5 / math.sqrt(2 * 40000)
        assert abs((values**4).mean().item() - 3) < 5 * math.sqrt(96 / 40000)
    assert not torch.equal(noise[0], noise[1])


def test_the_seed_decides_and_the_global_state_stays():
    case = cases.IN_PLACE
    before = torch.get_rng_state()
    first = smooth_grad(saliency.gradient, 3)(case.model(), case.input(), 1)
    torch.rand(3)
    again = smooth_grad(saliency.gradient, 3)(case.model(), case.input(), 1)
    assert torch.equal(first, again)
    assert not torch.equal(first, smooth_grad(saliency.gradient, 3, seed=1)(case.model(), case.input(), 1))
    torch.set_rng_state(before)
    smooth_grad(saliency.gradient, 3)(case.model(), case.input(), 1)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_smoothed_method_is_used_again():
    """It has no state: the second call is the first."""
    case, smoothed = cases.IN_PLACE, smooth_grad(saliency.gradient, 3)
    assert torch.equal(smoothed(case.model(), case.input(), 1), smoothed(case.model(), case.input(), 1))


def test_several_inputs_layers_and_probes():
    case = cases.TWO_INPUTS
    maps = smooth_grad(saliency.gradient, 2)(case.model(), case.input(), 1)
    assert isinstance(maps, tuple)
    assert [map.shape for map in maps] == [(2, 1, 11, 14), (2, 1, 1, 1)]
    case = cases.IN_PLACE
    maps = smooth_grad(saliency.grad_cam, 2)(case.model(), case.input(), 1, ["features.0", "features"])
    assert [map.shape for map in maps] == [(2, 1, 11, 14), (2, 1, 6, 7)]
    for map, layer in zip(maps, ["features.0", "features"], strict=True):
        torch.testing.assert_close(map, smooth_grad(saliency.grad_cam, 2)(case.model(), case.input(), 1, layer))


def test_k_targets_share_the_noise():
    case, smoothed = cases.IN_PLACE, smooth_grad(saliency.gradient, 2)
    together = smoothed(case.model(), case.input(), [[0, 1], [2, 3]])
    for k in range(2):
        single = smoothed(case.model(), case.input(), [[0, 2], [1, 3]][k])
        torch.testing.assert_close(together[:, k : k + 1], single)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    case = cases.IN_PLACE
    found = smooth_grad(saliency.gradient, 2)(case.model(dtype), case.input(dtype), 1)
    assert found.dtype == dtype
    assert found.isfinite().all()


def test_integers_are_left_alone():
    inputs: list = []
    x, index = torch.rand(1, 3, 4, 4), torch.tensor([[1, 2]])
    smooth_grad(recorder(inputs), 2)(None, (x, index), 0)
    assert all(torch.equal(given[1], index) for given in inputs)
    assert not torch.equal(inputs[0][0], inputs[1][0])


def test_the_callers_input_and_model_stay():
    case = cases.TRAIN_MODE
    model, x = case.model(), case.input().requires_grad_()
    before = x.detach().clone(), [module.training for module in model.modules()]
    result = smooth_grad(saliency.gradient, 2)(model, x, 1)
    assert not result.requires_grad
    assert torch.equal(x, before[0])
    assert x.grad is None
    assert [module.training for module in model.modules()] == before[1]


def test_name_and_documentation_are_the_methods():
    smoothed = smooth_grad(saliency.grad_cam)
    assert smoothed.__name__ == "grad_cam"
    assert smoothed.__doc__ == saliency.grad_cam.__doc__


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        *(("n_samples", value) for value in (0, -1, 2.0, True, None, "2")),
        *(("sigma", value) for value in (-0.1, math.nan, math.inf, None, "1", True)),
    ],
)
def test_options_that_make_no_sense(argument, value):
    with pytest.raises(ValueError, match=rf"^{argument}=.*expected .*\.$"):
        smooth_grad(saliency.gradient, **{argument: value})


@pytest.mark.parametrize("input", [None, 3, torch.zeros(0, 3, 4, 4), torch.zeros(3)])
def test_inputs_that_make_no_sense(input):
    with pytest.raises(ValueError, match=r"^input=.*expected .*\.$"):
        smooth_grad(saliency.gradient, 2)(cases.IN_PLACE.model(), input, 1)


def test_smoothing_can_be_nested_and_combined():
    """A method goes in, a method comes out: it can go in again."""
    case = cases.IN_PLACE
    inner = smooth_grad(saliency.gradient, 2, sigma=0)
    found = smooth_grad(inner, 2, sigma=0)(case.model(), case.input(), 1)
    torch.testing.assert_close(found, saliency.gradient(case.model(), case.input(), 1))
