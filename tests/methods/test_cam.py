"""Every CAM against its paper's formula, written out in loops over channels and positions."""

import math

import pytest
import torch
from torch import Tensor, nn

import saliency
from saliency import METHODS
from tests import cases

TARGETS = [4, 1]  # of the case


def weigh(x: Tensor, weight) -> Tensor:
    """max(0, sum_c weight(n, c, i, j) x_ncij), position by position."""
    n, c, h, w = x.shape
    result = torch.zeros(n, 1, h, w, dtype=x.dtype)
    for b in range(n):
        for i in range(h):
            for j in range(w):
                total = sum(float(x[b, k, i, j]) * weight(b, k, i, j) for k in range(c))
                result[b, 0, i, j] = max(0.0, total)
    return result


def positions(x: Tensor):
    return [(i, j) for i in range(x.shape[2]) for j in range(x.shape[3])]


def grad_cam(x: Tensor, dx: Tensor) -> Tensor:
    z = len(positions(x))
    return weigh(x, lambda b, k, i, j: sum(float(dx[b, k, p, q]) for p, q in positions(x)) / z)


def grad_cam_plus_plus(x: Tensor, dx: Tensor) -> Tensor:
    def weight(b, k, i, j):
        activations = sum(float(x[b, k, p, q]) for p, q in positions(x))
        total = 0.0
        for p, q in positions(x):
            g = float(dx[b, k, p, q])
            denominator = 2 * g**2 + activations * g**3
            total += (g**2 / denominator if denominator != 0 else 0.0) * max(0.0, g)
        return total

    cached = {(b, k): weight(b, k, 0, 0) for b in range(x.shape[0]) for k in range(x.shape[1])}
    return weigh(x, lambda b, k, i, j: cached[b, k])


def layer_cam(x: Tensor, dx: Tensor) -> Tensor:
    return weigh(x, lambda b, k, i, j: max(0.0, float(dx[b, k, i, j])))


def xgrad_cam(x: Tensor, dx: Tensor) -> Tensor:
    def weight(b, k):
        products = sum(float(x[b, k, p, q] * dx[b, k, p, q]) for p, q in positions(x))
        activations = sum(float(x[b, k, p, q]) for p, q in positions(x))
        return products / activations if activations != 0 else 0.0

    cached = {(b, k): weight(b, k) for b in range(x.shape[0]) for k in range(x.shape[1])}
    return weigh(x, lambda b, k, i, j: cached[b, k])


def hires_cam(x: Tensor, dx: Tensor) -> Tensor:
    return weigh(x, lambda b, k, i, j: float(dx[b, k, i, j]))


FORMULAS = [grad_cam, grad_cam_plus_plus, layer_cam, xgrad_cam, hires_cam]


@pytest.mark.parametrize("formula", FORMULAS, ids=lambda formula: formula.__name__)
def test_the_formula_of_the_paper(case, formula):
    model, input, x, dx = case
    assert (x[:, 2] == 0).all()  # the dead channel is there, and gives no NaN
    found = METHODS[formula.__name__].function(model, input, TARGETS, saliency_layer="layer")
    expected = formula(x, dx)
    assert expected.max() > 0
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("formula", FORMULAS, ids=lambda formula: formula.__name__)
def test_the_reduction_alone_works_on_a_tensor_with_gradient(case, formula):
    _, _, x, dx = case
    reduction = getattr(saliency, f"gradient_to_{formula.__name__}_saliency")
    x = x.clone()
    x.grad = dx
    torch.testing.assert_close(reduction(x), formula(x, dx), rtol=1e-9, atol=1e-12)
    x.grad = None
    with pytest.raises(ValueError, match="has no gradient"):
        reduction(x)


def test_grad_cam_plus_plus_does_not_underflow_in_half_precision():
    x = torch.rand(1, 2, 3, 3)
    x.grad = torch.full_like(x, 2e-4)  # its cube is below the smallest half
    half = x.half()
    half.grad = x.grad.half()
    expected = saliency.gradient_to_grad_cam_plus_plus_saliency(x)
    found = saliency.gradient_to_grad_cam_plus_plus_saliency(half).float()
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=0)


@pytest.mark.parametrize("name", ["grad_cam", "xgrad_cam", "hires_cam"])
def test_a_linear_head_on_pooled_features_gives_the_class_activation_map(name):
    """Behind global average pooling and a linear layer the three are CAM itself: sum_c w_c x_c / (h w)."""
    torch.manual_seed(0)
    features, head = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)
    model = nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head).double()
    input = torch.randn(2, 3, 8, 6, dtype=torch.float64)
    cam = torch.einsum("c,nchw->nhw", head.weight[3], features(input)) / (6 * 4)
    found = METHODS[name].function(model, input, 3, "0")
    torch.testing.assert_close(found[:, 0], cam.clamp(min=0).detach(), rtol=1e-9, atol=1e-12)


def test_xgrad_cam_conserves_the_score_of_a_network_that_is_linear_behind_the_layer():
    """Axiom of conservation: before the clamp the map sums to what the layer contributes to the score."""
    torch.manual_seed(1)
    head = nn.Linear(4 * 5 * 3, 2, bias=False)
    model = nn.Sequential(nn.Conv2d(1, 4, 2), nn.Softplus(), nn.Flatten(), head).double()
    input = torch.randn(1, 1, 6, 4, dtype=torch.float64)
    weighted = saliency.saliency(
        model, input, 1, "1", gradient_to_saliency=lambda x: x * (x * x.grad).sum((2, 3), True) / x.sum((2, 3), True)
    )
    assert math.isclose(weighted.sum().item(), model(input)[0, 1].item(), rel_tol=1e-9)


def test_a_cam_under_another_rule_takes_its_gradient_from_it(case):
    """Context and reduction are independent axes: LayerCAM of the guided gradient."""
    model, input, _, _ = case
    context = saliency.GuidedBackpropContext
    x = saliency.activation(model, input, None, "layer", reduction=None)
    dx = saliency.guided_backprop(model, input, TARGETS, "layer", gradient_to_saliency=lambda x: x.grad)
    found = saliency.layer_cam(model, input, TARGETS, "layer", context_builder=context)
    torch.testing.assert_close(found, layer_cam(x, dx), rtol=1e-9, atol=1e-12)


CAMS = ["grad_cam", "grad_cam_plus_plus", "layer_cam", "xgrad_cam", "hires_cam", "finer_cam", "shapley_cam", "cam"]
CAMS += ["smooth_grad_cam_plus_plus", "score_cam", "ss_cam", "is_cam", "ablation_cam"]


@pytest.mark.parametrize("name", CAMS)
def test_the_last_step_is_the_callers_own(name):
    """The sum over channels is signed; its positive part is the map; without it there are the weighed channels."""
    method, case = METHODS[name].function, cases.IN_PLACE
    arguments, targets = (case.model(), case.input()), [[0, 1], [2, 3]]
    channels = method(*arguments, targets, "features", reduction=None)
    assert channels.shape == (2, 2, 6, 6, 7)
    signed = method(*arguments, targets, "features", reduction=saliency.sum_channels)
    torch.testing.assert_close(signed, channels.sum(2))
    if name in ("grad_cam", "xgrad_cam", "hires_cam", "finer_cam", "shapley_cam", "cam", "ablation_cam"):
        assert signed.min() < 0  # weights of the others are positive, as activations are here
    positive = method(*arguments, targets, "features", reduction=saliency.positive_sum)
    torch.testing.assert_close(positive, signed.relu())
    if name != "cam":
        assert torch.equal(positive, method(*arguments, targets, "features"))
    with pytest.raises(ValueError, match=r"^reduction='sum' is not a reduction; expected .*\.$"):
        method(*arguments, targets, "features", reduction="sum")
