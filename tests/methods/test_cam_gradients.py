"""CAMs of another gradient, against their papers' formulas."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import saliency
from saliency import ShapleyContext, get_finer_gradient
from saliency.engine import paths
from tests import cases
from tests.methods.test_cam import TARGETS, grad_cam, positions, weigh


def behind(model: nn.Module, x: Tensor) -> Tensor:
    """What the model of the fixture makes of its layer's activation."""
    return model.head(torch.tanh(model.tail(torch.relu(x))).mean((2, 3)))


def finer_score(scores: Tensor, target: int, gamma: float, count: int) -> Tensor:
    """y_c - gamma / T sum_t y_d, with the T classes d whose scores are nearest to that of c."""
    others = sorted(
        (c for c in range(len(scores)) if c != target), key=lambda c: abs(float((scores[c] - scores[target]).detach()))
    )
    return scores[target] - gamma / count * sum(scores[c] for c in others[:count])


@pytest.mark.parametrize(("gamma", "count"), [(0.6, 3), (1.0, 1), (0.3, 5)])
def test_finer_cam(case, gamma, count):
    model, input, x, _ = case
    x = x.clone().requires_grad_()
    scores = behind(model, x)
    total = sum(finer_score(scores[n], TARGETS[n], gamma, count) for n in range(2))
    (dx,) = torch.autograd.grad(total, x)
    found = saliency.finer_cam(model, input, TARGETS, "layer", gamma=gamma, num_references=count)
    torch.testing.assert_close(found, grad_cam(x.detach(), dx), rtol=1e-9, atol=1e-12)
    other = saliency.hires_cam(
        model, input, TARGETS, "layer", get_backward_gradient=lambda y, c: get_finer_gradient(y, c, gamma, count)
    )
    torch.testing.assert_close(other, (x * dx).sum(1, keepdim=True).relu().detach())


def test_of_few_classes_all_others_count():
    scores = torch.tensor([[3.0, 1.0], [0.0, 5.0]])
    torch.testing.assert_close(get_finer_gradient(scores, [0, 1]), torch.tensor([[1, -0.6], [-0.6, 1]]))


def test_of_maps_of_scores_the_others_count_where_the_target_does():
    scores = torch.randn(1, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    found = get_finer_gradient(scores, (1, 0, 1), gamma=0.5, num_references=2)
    expected = torch.zeros(1, 3, 2, 2)
    expected[0, :, 0, 1] = torch.tensor([-0.25, 1, -0.25])
    assert torch.equal(found, expected)
    assert torch.equal(
        get_finer_gradient(scores, 1, 0.5, 2), torch.tensor([-0.25, 1, -0.25]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    )


@pytest.mark.parametrize("target", [0, 1, 2])
def test_a_class_is_not_compared_with_itself_where_scores_are_equal(target):
    gradient = get_finer_gradient(torch.tensor([[1.0, 1.0, 1.0, 0.0]]), target, gamma=0.6, num_references=2)
    assert gradient[0].tolist() == pytest.approx([1 if c == target else -0.3 for c in range(3)] + [0])


@pytest.mark.parametrize(
    "options",
    [
        *({"gamma": value} for value in ("1", None, math.nan)),
        *({"num_references": value} for value in (0, -1, 2.0, True)),
        *({"target": value} for value in (lambda y: y[:, 1], [lambda y: y[1]] * 2)),
    ],
    ids=lambda options: cases.shown(next(iter(options.values()))),
)
def test_options_that_make_no_sense(case, options):
    (argument,) = options
    with pytest.raises(ValueError, match=rf"^{argument}=.*expected .*\.$"):
        saliency.finer_cam(case[0], case[1], saliency_layer="layer", **{"target": 1, **options})


def test_an_only_score_is_compared_with_nothing():
    with pytest.raises(ValueError, match="has no other class"):
        saliency.finer_cam(cases.ONE_SCORE.model(), cases.ONE_SCORE.input(), None, "features")


def hessian_product(score, x: Tensor) -> Tensor:
    """H x, one column of the Hessian after the other."""
    h = torch.autograd.functional.hessian(score, x).view(x.numel(), x.numel())
    return torch.stack([sum(h[i, j] * x.flatten()[j] for j in range(x.numel())) for i in range(x.numel())]).view(
        x.shape
    )


def test_shapley_cam(case):
    """w_k = mean_u (g - H x / 2)_ku."""
    model, input, _, _ = case
    input = input[:, :, :5, :6]  # 5 x 3 x 4 entries of the layer
    model.tail = nn.Conv2d(5, 4, 2).double()

    def score(output: Tensor, n: int) -> Tensor:
        """ReST, the paper's own: a logit and the logarithm of its probability."""
        return (output + output.log_softmax(1))[:, TARGETS[n]].sum()

    found = saliency.shapley_cam(
        model, input, lambda output: torch.stack([score(output[n : n + 1], n) for n in range(2)]), "layer"
    )
    for n in range(2):
        x = model.layer(input[n : n + 1]).detach().requires_grad_()
        (dx,) = torch.autograd.grad(score(behind(model, x), n), x)
        modified = dx - hessian_product(lambda x, n=n: score(behind(model, x), n), x.detach()) / 2
        assert (modified - dx).abs().max() > 1e-3 * dx.abs().max()
        torch.testing.assert_close(found[n : n + 1], grad_cam(x.detach(), modified), rtol=1e-9, atol=1e-12)


def test_each_layer_of_a_list_has_a_hessian_of_its_own(case):
    model, input, _, _ = case
    both = saliency.shapley_cam(model, input, TARGETS, ["layer", "tail"])
    for layer, found in zip(["layer", "tail"], both, strict=True):
        torch.testing.assert_close(found, saliency.shapley_cam(model, input, TARGETS, layer))


def test_without_curvature_it_is_grad_cam():
    case = cases.IN_PLACE
    found = saliency.shapley_cam(case.model(), case.input(), 1, "features")
    assert torch.equal(found, saliency.grad_cam(case.model(), case.input(), 1, "features"))


def test_attention_is_differentiated_twice():
    """Fused attention has no second derivative: here with a mask of truth values, and causal."""
    mask = torch.rand(12, 12, generator=torch.Generator().manual_seed(0)) > 0.5
    mask |= torch.eye(12, dtype=torch.bool)

    def forward(own, x, attend=F.scaled_dot_product_attention):
        y = own.conv(x).flatten(2).mT[:, None]
        y = attend(y, y.sin(), y.cos(), mask)
        return own.head(attend(y, y, y, is_causal=True)[:, 0].mT.flatten(1))

    torch.manual_seed(0)
    model = cases.Net(forward, conv=nn.Conv2d(3, 4, 3), head=nn.Linear(48, 5)).double()
    input = torch.randn(2, 3, 6, 5).double()
    for n in range(2):
        x = model.conv(input[n : n + 1]).detach().requires_grad_()

        def score(x):
            with sdpa_kernel(SDPBackend.MATH):
                return forward(cases.Net(None, conv=nn.Identity(), head=model.head), x)[:, 1].sum()

        (dx,) = torch.autograd.grad(score(x), x)
        modified = dx - hessian_product(score, x.detach()) / 2
        found = saliency.saliency(
            model, input[n : n + 1], 1, "conv", context_builder=ShapleyContext, gradient_to_saliency=lambda x: x.grad
        )
        torch.testing.assert_close(found, modified, rtol=1e-9, atol=1e-12)


def test_what_comes_back_is_no_derivative_to_walk_along():
    case = cases.IN_PLACE
    with pytest.raises(ValueError, match=r"context_builder=.*is not possible on a path"):
        saliency.integrated_gradients(case.model(), case.input(), 1, "features", context_builder=ShapleyContext)


def smooth_weights(x: Tensor, gradients: list[Tensor]):
    """sum_u alpha_u relu(D1_u), alpha = D2 / (2 D2 + D3 sum_w x_w), with D_p the mean of g^p over the noisy images."""

    def weight(b, k):
        activations = sum(float(x[b, k, p, q]) for p, q in positions(x))
        total = 0.0
        for p, q in positions(x):
            g = [float(each[b, k, p, q]) for each in gradients]
            first, second, third = (sum(value**power for value in g) / len(g) for power in (1, 2, 3))
            denominator = 2 * second + third * activations
            total += (second / denominator if denominator != 0 else 0.0) * max(0.0, first)
        return total

    cached = {(b, k): weight(b, k) for b in range(x.shape[0]) for k in range(x.shape[1])}
    return lambda b, k, i, j: cached[b, k]


@pytest.mark.parametrize("size", [None, 2])
def test_smooth_grad_cam_plus_plus(case, size):
    model, input, x, _ = case
    walk, steps, gradients = paths.noise(5, 0.4, 7).begin([input], None), torch.arange(5), []
    noisy = torch.stack([walk(torch.full((5,), n), steps).points[0] for n in range(2)], 1)  # each has the same draws
    torch.testing.assert_close(noisy[:, 0] - input[0], noisy[:, 1] - input[1])
    for images in noisy:
        y = model.layer(images).detach().requires_grad_()
        gradients.append(torch.autograd.grad(behind(model, y)[range(2), TARGETS].sum(), y)[0])
    assert not torch.equal(gradients[0], gradients[1])
    found = saliency.smooth_grad_cam_plus_plus(
        model, input, TARGETS, "layer", n_samples=5, stdevs=0.4, seed=7, internal_batch_size=size
    )
    torch.testing.assert_close(found, weigh(x, smooth_weights(x, gradients)), rtol=1e-9, atol=1e-12)


def test_without_noise_smooth_grad_cam_plus_plus_is_grad_cam_plus_plus():
    for case in (cases.IN_PLACE, cases.TRANSFORMER):
        model, input = case.model(), case.input()
        found = saliency.smooth_grad_cam_plus_plus(model, input, [[0, 1], [2, 3]], case.layers, n_samples=2, stdevs=0)
        plain = saliency.grad_cam_plus_plus(model, input, [[0, 1], [2, 3]], case.layers)
        for a, b in zip(found, plain, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shape", [(3, 40), (3, 6, 7, 8)], ids=["signal", "volume"])
@pytest.mark.parametrize("name", ["finer_cam", "shapley_cam", "smooth_grad_cam_plus_plus", "full_grad", "refine_cam"])
def test_one_and_three_dimensions_in_a_batch_and_alone(name, shape):
    torch.manual_seed(0)
    conv = nn.Conv1d if len(shape) == 2 else nn.Conv3d
    model = nn.Sequential(conv(3, 4, 3), nn.GELU(), conv(4, 5, 3), nn.Tanh(), nn.Flatten(), nn.LazyLinear(5)).double()
    input = torch.randn(3, *shape).double()
    model(input)
    method = saliency.METHODS[name].function
    layer = ["1", "3"] if name == "refine_cam" else "1"
    together = method(model, input, [0, 1, 2], layer, resize=True)
    assert together.shape == (3, 1, *shape[1:])
    for n in range(3):
        torch.testing.assert_close(
            method(model, input[n : n + 1], [n], layer, resize=True), together[n : n + 1], rtol=1e-7, atol=1e-9
        )
