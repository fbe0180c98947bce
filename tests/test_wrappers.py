"""SmoothGrad: an average over noisy inputs, with a noise of its own."""

import math

import pytest
import torch
from torch import Tensor

import saliency
from saliency import Warp, augmented, low_pass, normalised, smooth_grad
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


def image(*shape: int) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("power", "of"),
    [
        ("mean", lambda maps: maps.mean(0)),
        ("squared", lambda maps: (maps**2).mean(0)),
        ("variance", lambda maps: maps.var(0, correction=0)),
    ],
)
def test_the_power_of_the_maps(power, of):
    inputs: list[Tensor] = []
    found = smooth_grad(recorder(inputs), n_samples=7, sigma=0.3, power=power)(None, image(2, 3, 4, 5), 1)
    torch.testing.assert_close(found, of(torch.stack(inputs)), rtol=1e-12, atol=1e-12)


def test_the_mirror_image_is_averaged():
    seen: list[Tensor] = []
    x = image(2, 3, 4, 6)

    def method(model, input, target, **options):
        seen.append(input)
        return torch.cat([input[:, :1] ** 2, input[:, 1:2] * torch.arange(6)], 1)

    found = augmented(method)(None, x, 0)
    torch.testing.assert_close(seen[1], x.flip(3), rtol=1e-12, atol=1e-14)
    expected = (method(None, x, 0) + method(None, x.flip(3), 0).flip(3)) / 2
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("warp", "change"),
    [
        (Warp(angle=90), lambda x: x.rot90(1, (2, 3))),  # from the axis of columns to that of rows: counterclockwise
        (Warp(angle=-180), lambda x: x.flip(2, 3)),
        (Warp(gain=0.5), lambda x: 0.5 * x),
        (Warp(flip=True, angle=90), lambda x: x.flip(3).rot90(1, (2, 3))),
    ],
)
def test_an_image_is_turned(warp, change):
    seen: list[Tensor] = []
    x = image(1, 2, 5, 5)
    found = augmented(recorder(seen), [warp])(None, x, 0)
    torch.testing.assert_close(seen[0], change(x), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(found, x * warp.gain, rtol=1e-12, atol=1e-13)  # and turned back


def test_an_image_is_moved_and_what_is_not_seen_is_left_out():
    seen: list[Tensor] = []
    x = image(1, 1, 4, 8)

    def method(model, input, target):
        seen.append(input)
        return input + len(seen)  # another map for each of the two

    found = augmented(method, [Warp(), Warp(shift=(0.25, 0))])(None, x, 0)
    moved = torch.cat([x[..., :1], x[..., :1], x[..., :-2]], 3)  # two columns of eight to the right, a border continued
    torch.testing.assert_close(seen[1], moved, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(found[..., :6], x[..., :6] + 1.5, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(found[..., 6:], x[..., 6:] + 1, rtol=1e-12, atol=1e-13)


def test_an_image_is_enlarged_around_its_middle():
    """Twice as large, a point at distance d of the middle is at 2 d: a ramp rises half as fast."""
    seen: list[Tensor] = []
    ramp = torch.arange(8, dtype=torch.float64).expand(1, 1, 6, 8)
    augmented(recorder(seen), [Warp(scale=2)])(None, ramp, 0)
    torch.testing.assert_close(seen[0][0, 0, 0], 3.5 + (torch.arange(8, dtype=torch.float64) - 3.5) / 2)


def test_maps_of_a_layer_and_of_several_classes_are_changed_back():
    """Of a network that treats left and right alike, the mean over both is the map itself."""
    case = cases.IN_PLACE
    net, x = case.model(), case.input()
    for conv in (module for module in net.modules() if isinstance(module, torch.nn.Conv2d)):
        conv.weight.data = (conv.weight.data + conv.weight.data.flip(3)) / 2
    targets = torch.tensor([[0, 1]] * len(x))
    plain = saliency.hires_cam(net, x, targets, ["features"])
    mirrored = saliency.hires_cam(net, x.flip(3), targets, ["features"])
    found = augmented(saliency.hires_cam)(net, x, targets, ["features"])
    torch.testing.assert_close(found[0], (plain[0] + mirrored[0].flip(3)) / 2, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shape", [(1, 2, 9), (2, 1, 6, 7), (1, 1, 4, 5, 6)])
@pytest.mark.parametrize("cutoff", [0.3, 0.7, 1.0])
def test_high_frequencies_are_removed(shape, cutoff):
    """A sum of waves: those that remain vary no faster than the cutoff, as a fraction of half a wave a cell."""
    x = image(*shape)
    found = low_pass(recorder([]), cutoff)(None, x, 0)
    spectrum, kept = (torch.fft.fftn(maps, dim=tuple(range(2, x.ndim))) for maps in (x, found))
    for at in torch.cartesian_prod(*map(torch.arange, shape[2:])).reshape(-1, x.ndim - 2).tolist():
        speed = [2 * min(k, side - k) / side for k, side in zip(at, shape[2:], strict=True)]
        expected = spectrum[(..., *at)] if math.hypot(*speed) <= cutoff else torch.zeros(())
        torch.testing.assert_close(kept[(..., *at)], expected + 0 * kept[(..., *at)], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("by", ["max", "minmax", "sum"])
def test_maps_on_one_scale(by):
    x = image(2, 2, 3, 4) - 0.4
    found = normalised(recorder([]), by)(None, x, 0)
    for n in range(2):
        for k in range(2):
            s, low, high = x[n, k], x[n, k].min(), x[n, k].max()
            size = {"max": s.abs().max(), "minmax": high - low, "sum": s.abs().sum()}[by]
            expected = (s - (low if by == "minmax" else 0)) / size
            torch.testing.assert_close(found[n, k], expected, rtol=1e-12, atol=1e-14)
    assert not normalised(recorder([]), by)(None, torch.zeros(1, 1, 2, 2), 0).any()


def test_wrappers_wrap_wrapped_methods():
    case = cases.IN_PLACE
    method = normalised(low_pass(augmented(smooth_grad(saliency.gradient, 2, 0.1)), 0.5), "max")
    found = method(case.model(), case.input(), 1, smooth=0.02)
    torch.testing.assert_close(found.abs().amax((1, 2, 3)), torch.ones(len(found), dtype=found.dtype))


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (lambda: smooth_grad(saliency.gradient, power="cubed"), "power='cubed' is not a valid power"),
        (lambda: augmented(saliency.gradient, []), r"warps=\[\] is not a list of warps"),
        (lambda: augmented(saliency.gradient, [Warp(scale=0)]), "warps=Warp.* is not invertible"),
        (lambda: augmented(torch.nn.Identity()), "method=a Identity is not a method; .*augmented"),
        (lambda: augmented(saliency.gradient)(None, torch.rand(1, 3, 4), 0), "input=.* cannot be transformed"),
        (lambda: low_pass(saliency.gradient, 0), "cutoff=0 is not a fraction"),
        (lambda: low_pass(recorder([]), 0.5)(None, torch.rand(1, 3), 0), "method returned .* not a map"),
        (lambda: normalised(saliency.gradient, "l2"), "by='l2' is not a normalisation"),
        (lambda: normalised(saliency.gradient)(None, torch.rand(1, 3, 4), 0, debug=True), "debug=True is not possible"),
    ],
)
def test_what_wrappers_refuse(wrap, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        wrap()
