"""Guided backpropagation and DeConvNet against their definition, layer by layer by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import saliency
from tests.cases import NOTICES

WEIGHT = {"guided_backprop": lambda p, x: p * (p > 0) * (x > 0), "deconvnet": lambda p, x: p * (p > 0)}


def by_hand(rule, model: nn.Sequential, input: Tensor, target: int) -> Tensor:
    """The signal at the input of linear layers with ReLU between them, as matrix products."""
    linears = [layer for layer in model if isinstance(layer, nn.Linear)]
    inputs, before = [input], []
    for layer in linears[:-1]:
        before.append(inputs[-1] @ layer.weight.T + layer.bias)
        inputs.append(before[-1].clamp(min=0))
    signal = linears[-1].weight[target].expand(len(input), -1)
    for layer, x in zip(reversed(linears[:-1]), reversed(before), strict=True):
        signal = rule(signal, x) @ layer.weight
    return signal.detach()


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("name", ["guided_backprop", "deconvnet"])
def test_the_rule_in_matrix_form(name, inplace):
    torch.manual_seed(0)
    layers = [nn.Linear(6, 8), nn.ReLU(inplace), nn.Linear(8, 7), nn.ReLU(inplace), nn.Linear(7, 3)]
    model = nn.Sequential(*layers).double()
    input = torch.randn(4, 6, dtype=torch.float64)
    found = saliency.METHODS[name].function(model, input, 2, gradient_to_saliency=lambda x: x.grad, layout="layer")
    expected = by_hand(WEIGHT[name], model, input, 2)
    plain = by_hand(lambda p, x: p * (x > 0), model, input, 2)
    assert (expected - plain).abs().max() > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_no_gradient_passes_where_the_input_is_exactly_zero():
    """Guided: p > 0 and x > 0. DeConvNet: p > 0."""
    model = nn.Sequential(nn.Identity(), nn.ReLU(), nn.Flatten(), nn.Linear(3, 1, bias=False))
    with torch.no_grad():
        model[3].weight.copy_(torch.tensor([[1.0, 1.0, -1.0]]))
    input = torch.tensor([0.0, 1.0, 1.0]).view(1, 1, 1, 3)
    assert saliency.guided_backprop(model, input, 0).flatten().tolist() == [0, 1, 0]
    assert saliency.deconvnet(model, input, 0).flatten().tolist() == [1, 1, 0]


ACTIVATIONS = [F.relu6, F.hardtanh, F.leaky_relu, F.elu, F.celu, F.selu, F.gelu, F.silu, F.mish, F.hardswish]


@pytest.mark.parametrize("function", ACTIVATIONS, ids=lambda function: function.__name__)
@NOTICES
def test_other_activations_follow_the_rule_with_their_own_derivative(function):
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return function(x) @ weight

    x = torch.linspace(-4, 8, 13, dtype=torch.float64).view(1, 13)
    p = torch.tensor([1.0, -2.0, 3.0] * 4 + [0.5], dtype=torch.float64)
    weight = p[:, None]
    leaf = x.clone().requires_grad_()
    (derivative,) = torch.autograd.grad(function(leaf).sum(), leaf)
    options = {"gradient_to_saliency": lambda x: x.grad, "layout": "layer"}
    guided = saliency.guided_backprop(Net(), x, 0, **options)
    torch.testing.assert_close(guided, derivative * p.clamp(min=0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(saliency.deconvnet(Net(), x, 0, **options), p.clamp(min=0)[None], rtol=0, atol=0)


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_guided_grad_cam_is_the_product_of_its_two_parts(mode):
    torch.manual_seed(5)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(60, 6)
    )
    input = torch.randn(2, 3, 8, 7)
    targets = torch.tensor([[0, 5], [3, 1]])
    product = saliency.guided_grad_cam(model, input, targets, "1", interpolate_mode=mode, reduction=None)
    for k in range(2):
        cam = F.interpolate(saliency.grad_cam(model, input, targets[:, k], "1"), (8, 7), mode=mode)
        guided = saliency.guided_backprop(model, input, targets[:, k], gradient_to_saliency=lambda x: x.grad)
        torch.testing.assert_close(product[:, k], cam * guided)
    maps = saliency.guided_grad_cam(model, input, targets, "1", interpolate_mode=mode)
    torch.testing.assert_close(maps, product.abs().amax(2))
    both = saliency.guided_grad_cam(model, input, targets, ["0", "1"], interpolate_mode=mode)
    torch.testing.assert_close(both[1], maps)
    fine = saliency.guided_grad_cam(model, input, targets[:, 0], "1", interpolate_mode=mode, cam=saliency.layer_cam)
    cam = F.interpolate(saliency.layer_cam(model, input, targets[:, 0], "1"), (8, 7), mode=mode)
    guided = saliency.guided_backprop(model, input, targets[:, 0], gradient_to_saliency=lambda x: x.grad)
    torch.testing.assert_close(fine, (cam * guided).abs().amax(1, keepdim=True))
    with pytest.raises(ValueError, match=r"^cam='layer_cam' is not a method"):
        saliency.guided_grad_cam(model, input, 0, "1", cam="layer_cam")
