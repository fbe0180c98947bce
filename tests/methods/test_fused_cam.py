"""One map of several layers: LayerCAM's fusion, RefineCAM, and what the wrapper does to any method."""

import math

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

import saliency
from saliency import fused
from tests import cases

FUSES = {"mean": lambda values: sum(values) / len(values), "max": max, "product": math.prod}
LAYERS = ["features.0", "features"]


def formula(maps: list[Tensor], fuse: str, gamma: float | None, size: tuple[int, int]) -> Tensor:
    """Each map over its maximum, through tanh, at the size of the largest; then position by position."""
    large = []
    for each in maps:
        normalised = each.clamp(min=0) / each.max() if each.max() > 0 else torch.zeros_like(each)
        squashed = normalised if gamma is None else torch.tanh(gamma * normalised)
        large.append(F.interpolate(squashed[None, None], size, mode="bilinear", align_corners=False)[0, 0])
    found = torch.zeros(size, dtype=maps[0].dtype)
    for i in range(size[0]):
        for j in range(size[1]):
            found[i, j] = FUSES[fuse]([float(each[i, j]) for each in large])
    return found


@pytest.mark.parametrize("gamma", [2.0, None])
@pytest.mark.parametrize("fuse", FUSES)
@pytest.mark.parametrize("method", ["layer_cam", "linear_approx"])
def test_every_image_and_target_has_a_scale_of_its_own(method, fuse, gamma):
    model, input = cases.IN_PLACE.model(), cases.IN_PLACE.input()
    method, targets = getattr(saliency, method), [[0, 1], [2, 3]]
    maps = method(model, input, targets, LAYERS)
    found = fused(method, fuse, gamma)(model, input, targets, LAYERS)
    assert found.shape == (2, 2, 11, 14)
    assert found.min() >= 0
    assert found.max() <= 1
    for n in range(2):
        for k in range(2):
            expected = formula([each[n, k] for each in maps], fuse, gamma, (11, 14))
            torch.testing.assert_close(found[n, k], expected, rtol=1e-9, atol=1e-12)


def test_refine_cam_is_the_product_of_grad_cam_plus_plus():
    model, input = cases.IN_PLACE.model(), cases.IN_PLACE.input()
    found = saliency.refine_cam(model, input, 1, LAYERS, resize=(5, 3), smooth=0.1)
    assert torch.equal(
        found, fused(saliency.grad_cam_plus_plus, "product", None)(model, input, 1, LAYERS, (5, 3), smooth=0.1)
    )
    raw = [each[0, 0] for each in saliency.grad_cam_plus_plus(model, input, 1, LAYERS)]
    plain = saliency.refine_cam(model, input, 1, LAYERS)
    torch.testing.assert_close(plain[0, 0], formula(raw, "product", None, (11, 14)), rtol=1e-9, atol=1e-12)


def test_without_layers_refine_cam_takes_the_last_of_each_resolution():
    torch.manual_seed(0)
    model, image = torchvision.models.resnet18(weights=None).eval(), torch.randn(1, 3, 96, 96)
    expected = saliency.refine_cam(
        model, image, 0, ["relu", "layer1", "layer2", "layer3", "layer4"]
    )  # 48, 24, 12, 6, 3
    assert expected.shape == (1, 1, 48, 48)
    assert torch.equal(saliency.refine_cam(model, image, 0), expected)
    case = cases.TRANSFORMER  # all layers have one
    found = saliency.refine_cam(case.model(), case.input(), 1)
    assert torch.equal(found, saliency.refine_cam(case.model(), case.input(), 1, case.layers[1]))


def test_a_table_that_is_no_batch_of_maps_is_no_layer_of_refine_cam():
    """As the positions of a Swin v2: made by modules of their own, on a grid of their own, of no image."""
    torch.manual_seed(0)

    def forward(net: cases.Net, x: torch.Tensor) -> torch.Tensor:
        scale = net.table(torch.ones(1, 2, 5, 5)).mean((2, 3), keepdim=True)
        return net.fc((net.conv(x) * scale).relu().mean((2, 3)))

    parts = {"table": torch.nn.Conv2d(2, 4, 1), "conv": torch.nn.Conv2d(1, 4, 2, 2), "fc": torch.nn.Linear(4, 3)}
    model = cases.Net(forward, **parts)
    input = torch.rand(2, 1, 8, 8)
    assert torch.equal(saliency.refine_cam(model, input, 1), saliency.refine_cam(model, input, 1, "conv"))


def test_one_layer_is_scaled():
    model, input = cases.IN_PLACE.model(), cases.IN_PLACE.input()
    cam = saliency.grad_cam_plus_plus(model, input, 1, "features")
    expected = cam / cam.amax((2, 3), keepdim=True)
    torch.testing.assert_close(saliency.refine_cam(model, input, 1, "features"), expected)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        *(("method", value) for value in (None, "grad_cam", torch.nn.ReLU())),
        *(("fuse", value) for value in ("sum", None, 2)),
        *(("gamma", value) for value in (0, -1.0, "2", math.nan, True)),
    ],
)
def test_options_that_make_no_sense(argument, value):
    with pytest.raises(ValueError, match=rf"^{argument}=.*expected .*\.$"):
        fused(**{"method": saliency.grad_cam, argument: value})


@pytest.mark.parametrize("options", [{"debug": True}, {"resize": 3}, {"smooth": -1}, {"resize_mode": "cubic"}])
def test_what_gives_no_maps_to_fuse(options):
    (argument,) = options
    with pytest.raises(ValueError, match=r"expected .*\.$") as error:
        fused(saliency.grad_cam)(cases.IN_PLACE.model(), cases.IN_PLACE.input(), 1, LAYERS, **options)
    assert str(error.value).startswith(argument)


def test_a_fused_method_keeps_its_name_and_can_be_smoothed():
    case = cases.IN_PLACE
    assert fused(saliency.layer_cam).__name__ == "layer_cam"
    calm = saliency.smooth_grad(fused(saliency.layer_cam), 2, sigma=0)(case.model(), case.input(), 1, LAYERS)
    torch.testing.assert_close(calm, fused(saliency.layer_cam)(case.model(), case.input(), 1, LAYERS))
