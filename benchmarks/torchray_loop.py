"""TorchRay's own benchmark, case by case: its seven gradient methods in its settings, and its pointing game."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import Module
from torchvision.models import ResNet

from saliency.cli.settings import TORCHRAY_LAYERS, TORCHRAY_SMOOTH


class Networks(NamedTuple):
    """The network as it is, and the copy in which TorchRay's excitation backprop finds its residual sums."""

    plain: Module
    rewritten: Module


def make_networks(model: Module) -> Networks:
    """Copies of a network for TorchRay, which changes flags of its network."""
    from torchray.attribution.excitation_backprop import update_resnet

    model = deepcopy(model).to(memory_format=torch.contiguous_format)
    rewritten = deepcopy(model)
    for module in rewritten.modules():
        if isinstance(module, nn.ReLU):  # in place behind a probe, TorchRay's backward pass raises
            module.inplace = False
    return Networks(model, update_resnet(rewritten) if isinstance(model, ResNet) else rewritten)


def explain(name: str, networks: Networks, image: Tensor, target: int, size: tuple[int, int]) -> Tensor:
    """TorchRay's map (1, 1, H, W) of one image (1, 3, h, w), at ``size`` = (width, height), in its benchmark's way."""
    from torchray.attribution.common import get_pointing_gradient

    method, model = _methods()[name], networks.rewritten if "excitation" in name else networks.plain
    own: dict[str, Any] = {**TORCHRAY_LAYERS["resnet"].get(name, {}), **TORCHRAY_SMOOTH.get(name, {})}
    options = {"resize": size, "get_backward_gradient": get_pointing_gradient, **own}
    map: Tensor = method(model, image, target, **options)
    return map


def point_of(map: Tensor) -> list[int]:
    """The (x, y) of the maximum, as TorchRay finds it."""
    index = int(torch.max(map.view(-1), 0)[1])
    return [index % map.shape[3], index // map.shape[3]]


def is_hit(mask: Tensor, point: list[int]) -> bool:
    """TorchRay's verdict within 15 pixels, its default; its disc is open, where the paper's and ours are closed."""
    from torchray.benchmark.pointing_game import PointingGame

    return bool(PointingGame(1).evaluate(mask, point) == 1)


def _methods() -> Mapping[str, Callable[..., Tensor]]:
    from torchray.attribution.deconvnet import deconvnet
    from torchray.attribution.excitation_backprop import contrastive_excitation_backprop, excitation_backprop
    from torchray.attribution.grad_cam import grad_cam
    from torchray.attribution.gradient import gradient
    from torchray.attribution.guided_backprop import guided_backprop
    from torchray.attribution.linear_approx import linear_approx

    functions = (gradient, deconvnet, guided_backprop, linear_approx, grad_cam, excitation_backprop)
    return {function.__name__: function for function in (*functions, contrastive_excitation_backprop)}
