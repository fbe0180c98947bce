"""The gradient family on a linear model, whose answer is known, and against finite differences."""

import pytest
import torch
from torch import nn

import saliency


@pytest.fixture
def linear():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(2 * 3 * 4, 5)).double()


@pytest.fixture
def input():
    return torch.randn(2, 2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_the_gradient_of_a_linear_model_is_its_weight(linear, input):
    weight = linear[1].weight.detach()
    expected = torch.stack([weight[4].view(2, 3, 4).abs().amax(0), weight[0].view(2, 3, 4).abs().amax(0)])[:, None]
    torch.testing.assert_close(saliency.gradient(linear, input, [4, 0]), expected, rtol=0, atol=0)


def test_gradient_x_activation_of_a_linear_model_is_every_input_s_share(linear, input):
    weight, bias = linear[1].weight.detach(), linear[1].bias.detach()
    share = saliency.gradient_x_activation(linear, input, 2, reduction=None)
    torch.testing.assert_close(share, weight[2].view(1, 2, 3, 4) * input, rtol=0, atol=0)
    score = linear(input).detach()[:, 2] - bias[2]
    torch.testing.assert_close(share.sum((1, 2, 3)), score, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(saliency.linear_approx(linear, input, 2), share.sum(1, keepdim=True))
    torch.testing.assert_close(saliency.gradient_x_activation(linear, input, 2), share.sum(1, keepdim=True))


def test_gradient_x_activation_sums_to_the_score_of_a_relu_network_without_biases(input):
    torch.manual_seed(2)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 2, bias=False), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(4 * 2 * 3, 3, bias=False)
    ).double()
    for layer in ("", "0", "1"):
        share = saliency.gradient_x_activation(model, input, 1, layer, reduction=None)
        torch.testing.assert_close(share.flatten(1).sum(1), model(input)[:, 1].detach(), rtol=1e-12, atol=1e-12)


def test_the_gradient_is_the_limit_of_differences(input):
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(2, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(18, 4)).double()
    found = saliency.gradient(model, input, 3, gradient_to_saliency=lambda x: x.grad)
    step = 1e-6
    for index in [(0, 1, 2), (1, 0, 3), (0, 0, 0)]:
        moved = input.clone()
        moved[(slice(None), *index)] += step
        difference = (model(moved)[:, 3] - model(input)[:, 3]) / step
        torch.testing.assert_close(found[(slice(None), *index)], difference.detach(), rtol=1e-4, atol=1e-6)


def test_activation_is_what_the_layer_returns_for_every_target(input):
    torch.manual_seed(4)
    model = nn.Sequential(nn.Conv2d(2, 3, 2), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(18, 4)).double()
    expected = model[0](input).detach()
    torch.testing.assert_close(saliency.activation(model, input, None, "0", reduction=None), expected, rtol=0, atol=0)
    maps = saliency.activation(model, input, torch.tensor([[0, 1], [2, 3]]), "0")
    torch.testing.assert_close(maps, expected.sum(1, keepdim=True).expand(-1, 2, -1, -1))
    largest = saliency.activation(model, input, None, "0", reduction=saliency.max_channels)
    torch.testing.assert_close(largest, expected.abs().amax(1, keepdim=True))


def test_k_attributions_stand_side_by_side(linear, input):
    targets = torch.tensor([[0, 1, 2], [4, 3, 2]])
    shares = saliency.gradient_x_activation(linear, input, targets, reduction=None)
    assert shares.shape == (2, 3, 2, 3, 4)
    weight = linear[1].weight.detach()
    torch.testing.assert_close(shares[1, 0], weight[4].view(2, 3, 4) * input[1])
