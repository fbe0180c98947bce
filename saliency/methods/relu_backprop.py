"""Guided backpropagation and DeConvNet: the gradient, with a different rule for activation functions."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import Module
from typing_extensions import Unpack

from saliency import rules
from saliency.engine.call import Input, make_call
from saliency.engine.checks import shown
from saliency.engine.contexts import RuleContext
from saliency.engine.driver import saliency
from saliency.engine.finishing import Finish
from saliency.engine.layers import Layers
from saliency.engine.layouts import Layout
from saliency.engine.maps import (
    Attribution,
    Reduction,
    Resize,
    check_map_options,
    check_mode,
    gradient_of,
    join_targets,
    max_channels,
)
from saliency.engine.record import ContextBuilder
from saliency.engine.signatures import Maps, RuleOptions, WalkOptions, typed
from saliency.engine.site import make_site
from saliency.engine.targets import Target
from saliency.methods.cam import grad_cam


class GuidedBackpropContext(RuleContext):
    """Send back through every activation only the positive part of the gradient."""

    def __init__(self) -> None:
        super().__init__(rules.GUIDED)


class DeConvNetContext(RuleContext):
    """Send back through every activation the positive part of the gradient, whatever the activation's input."""

    def __init__(self) -> None:
        super().__init__(rules.DECONVNET)


@typed
def guided_backprop(
    model: Module,
    input: Input,
    target: Target,
    saliency_layer: Layers = "",
    context_builder: ContextBuilder = GuidedBackpropContext,
    **options: Unpack[RuleOptions],
) -> Maps:
    r"""Guided backpropagation: only positive gradients pass through every activation.

    At every activation, :math:`dx = f'(x) \max(0, dy)`; then :math:`s_{n1u} = \max_c |dx_{ncu}|`. Activations are ReLU,
    ReLU6, hardtanh, leaky ReLU, ELU, GELU, SiLU, Mish and hardswish, each with its own derivative.
    (N, 1, h, w), non-negative. Springenberg et al., ICLR workshop 2015. Options and errors: see :func:`saliency`.

    >>> import torch
    >>> x, start = torch.ones(1, 2), torch.tensor([[2.0, -1.0]])
    >>> guided_backprop(torch.nn.ReLU(), x, start, gradient_to_saliency=lambda x: x.grad).flatten()
    tensor([2., 0.])
    """
    return saliency(model, input, target, saliency_layer, context_builder=context_builder, **options)


@typed
def deconvnet(
    model: Module,
    input: Input,
    target: Target,
    saliency_layer: Layers = "",
    context_builder: ContextBuilder = DeConvNetContext,
    **options: Unpack[RuleOptions],
) -> Maps:
    r"""DeConvNet: the gradient sent back through activations as in a deconvolutional network.

    At every activation, :math:`dx = \max(0, dy)`, whatever :math:`x` is; then :math:`s_{n1u} = \max_c |dx_{ncu}|`.
    Activations are those of :func:`guided_backprop`.
    (N, 1, h, w), non-negative. Zeiler and Fergus, ECCV 2014. Options and errors: see :func:`saliency`.
    """
    return saliency(model, input, target, saliency_layer, context_builder=context_builder, **options)


@typed
def guided_grad_cam(
    model: Module,
    input: Input,
    target: Target,
    saliency_layer: Layers = None,
    resize: Resize = False,
    resize_mode: str = "bilinear",
    smooth: float = 0,
    *,
    debug: bool = False,
    layout: Layout = None,
    reduction: Reduction = max_channels,
    interpolate_mode: str = "bilinear",
    cam: Callable[..., Maps] = grad_cam,
    **options: Unpack[WalkOptions],
) -> Maps:
    r"""Guided Grad-CAM: the product of guided backpropagation at the input and Grad-CAM.

    .. math:: s_{n1u} = \max_c |g_{ncu} \, m_{n1u}|

    with the guided gradient :math:`g` and the layer's Grad-CAM map :math:`m`, resized to the input by
    ``interpolate_mode``; ``cam`` may be another CAM. (N, 1, H, W); ``reduction=None`` returns the product itself,
    (N, C, H, W). Selvaraju et al., ICCV 2017. Options and errors: see :func:`saliency`.
    """
    if not isinstance(input, Tensor):
        raise ValueError(f"input={type(input).__name__} is not a single tensor; expected one of shape (N, C, H, W).")
    call = make_call(model, input)
    check_map_options(resize, resize_mode, smooth, layout, call.image)
    check_mode("interpolate_mode", interpolate_mode)
    if not callable(cam):
        raise ValueError(f"cam={shown(cam)} is not a method; expected a CAM such as layer_cam.")
    shape, product = "layer" if reduction is None else None, Attribution(reduction, of="activation")
    finish = Finish(call, shape, product, resize, resize_mode, smooth)
    size: Resize = tuple(input.shape[:1:-1]) if input.ndim in (3, 4) else True
    cams = cam(
        model, input, target, saliency_layer, resize=size, resize_mode=interpolate_mode, layout=layout, **options
    )
    guided = guided_backprop(model, input, target, gradient_to_saliency=gradient_of, debug=debug, **options)
    guided, probes = guided if debug else (guided, None)

    def combine(cam: Tensor) -> Tensor:
        # Every map weights the gradient of its own target, with one value for all channels of a position.
        gradients = guided.reshape(len(input), -1, *input.shape[1:])
        channels = 3 if call.is_clip(input) else 2
        weights = cam.reshape(*gradients.shape[:channels], 1, *gradients.shape[channels + 1 :])
        weighted = gradients * weights
        highest = torch.stack([values.abs().amax() for values in (weighted, cam, guided)])
        call.notices.look(highest, _judge_product)
        maps = finish.maps(make_site(call, ""), weighted.unbind(1))
        return join_targets(maps, layer_shaped=reduction is None)

    result = [combine(cam) for cam in cams] if isinstance(cams, list) else combine(cams)
    call.notices.report()
    return (result, probes) if debug else result


def _judge_product(highest: list[float]) -> tuple[str, str] | None:
    """The warning for a zero product; a factor that is zero everywhere has had its own warning."""
    product, *factors = highest
    if product or not all(factors):
        return None
    return "zero", (
        "guided Grad-CAM's map is zero everywhere: Grad-CAM's map and the guided gradient are not, but they do not "
        "overlap; look at each separately"
    )
