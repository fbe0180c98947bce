"""Whatever strides the input and the model's tensors have, a map is what autograd gives by hand, rules included."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import saliency

LAYERS = ["", "0", "3", "4.0"]
FORMATS = {
    "contiguous": lambda x: x.contiguous(),
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "batch last": lambda x: x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
    "width first": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
}


class ByHand(torch.autograd.Function):
    """ReLU, whose gradient comes back by the rule that is asked for."""

    @staticmethod
    def forward(ctx, x: Tensor, rule: str) -> Tensor:
        ctx.save_for_backward(x)
        ctx.rule = rule
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        (x,) = ctx.saved_tensors
        gradient = gradient if ctx.rule == "gradient" else gradient.clamp(min=0)
        return gradient if ctx.rule == "deconvnet" else gradient * (x > 0), None


def make_model(cells: int = 6) -> nn.Sequential:
    """Convolutions, batch norms, and a head that sends a contiguous gradient back."""
    block = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3), nn.ReLU(inplace=True))
    model = nn.Sequential(
        *(nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), block, nn.Conv2d(3, 3, 1)),
        *(nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * cells, 4)),
    ).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 2)
    return model.eval()


def by_hand(model: nn.Sequential, x: Tensor, rule: str) -> list[Tensor]:
    """max |dx| at all layers, of contiguous tensors and a network that is written out."""
    block, kept = model[4], [x.contiguous().requires_grad_()]

    def norm(x: Tensor, layer: nn.BatchNorm2d) -> Tensor:
        scale = layer.weight / (layer.running_var + layer.eps).sqrt()
        return (x - layer.running_mean.view(-1, 1, 1)) * scale.view(-1, 1, 1) + layer.bias.view(-1, 1, 1)

    kept.append(F.conv2d(kept[0], model[0].weight, model[0].bias, padding=1))
    kept.append(F.max_pool2d(ByHand.apply(norm(kept[1], model[1]), rule), 2))
    kept.append(F.conv2d(kept[2], block[0].weight, padding=1))
    y = ByHand.apply(norm(kept[3], block[1]), rule)
    y = ByHand.apply(norm(F.conv2d(y, model[5].weight, model[5].bias), model[6]), rule)
    score = F.linear(y.flatten(1), model[9].weight, model[9].bias)[:, 1].sum()
    return [dx.abs().amax(1, keepdim=True) for dx in torch.autograd.grad(score, kept)]


@pytest.mark.parametrize("of_model", ["contiguous", "channels last"])
@pytest.mark.parametrize("shape", [(1, 4, 6), (2, 4, 6), (1, 2, 2)])
@pytest.mark.parametrize("strides", FORMATS)
@pytest.mark.parametrize("method", ["gradient", "guided_backprop", "deconvnet"])
def test_rules_and_gradients_in_all_memory_formats(method, strides, shape, of_model):
    samples, height, width = shape
    x = FORMATS[strides](torch.rand(samples, 2, height, width, dtype=torch.float64))
    model = make_model(height // 2 * (width // 2))
    model = model.to(memory_format=torch.channels_last) if of_model == "channels last" else model
    expected = by_hand(model, x, method)
    explain = getattr(saliency, method)
    shared = saliency.shared_forward(model, x, LAYERS)
    found = {
        "singles": [explain(model, x, 1, layer) for layer in LAYERS],
        "list": explain(model, x, 1, LAYERS),
        "shared": explain(model, x, 1, LAYERS, shared=shared),
        "debug": explain(model, x, 1, LAYERS, debug=True)[0],
    }
    for name, maps in found.items():
        for layer, map, wanted in zip(LAYERS, maps, expected, strict=True):
            torch.testing.assert_close(map, wanted, msg=lambda text, at=(name, layer): f"{at}: {text}")


@pytest.mark.parametrize("strides", FORMATS)
@pytest.mark.parametrize("layer", ["", "0", "4.0"])
def test_paths_through_a_layer_in_all_memory_formats(layer, strides):
    """What is replaced at a layer is replayed with strides of its own: the attributions sum to the score's change."""
    model, x = make_model(), FORMATS[strides](torch.rand(1, 2, 4, 6, dtype=torch.float64))
    start = torch.zeros_like(x) if not layer else None
    for each in (model, model.to(memory_format=torch.channels_last)):
        for size in (None, 3):
            maps, delta = saliency.integrated_gradients(
                each, x, 1, layer, n_steps=40, internal_batch_size=size, return_convergence_delta=True
            )
            assert start is None or abs(maps.sum() - delta - (each(x) - each(start))[0, 1]) < 1e-9
            assert abs(delta) < 0.02 * maps.abs().sum()


@pytest.mark.parametrize("shape", [(), (1,), (1, 3), (2, 1, 4)])
def test_a_probe_keeps_strides(shape):
    strides = tuple(range(7, 7 + len(shape)))
    x = torch.rand(500).as_strided(shape, strides).requires_grad_()
    with saliency.Probe(model := nn.Identity(), "output") as probe:
        model(x).sum().backward()
    assert probe.data[0].stride() == strides
    assert torch.equal(probe.data[0].grad, torch.ones(shape))
