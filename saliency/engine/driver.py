"""The driver: probe a layer, run the model forward and backward in a context, turn the gradient into a map."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import Module

from saliency.engine import maps, targets
from saliency.engine.call import Call, Input, make_call
from saliency.engine.checks import describe
from saliency.engine.contexts import NullContext
from saliency.engine.layers import Layer
from saliency.engine.layouts import Layout, to_channels_first
from saliency.engine.maps import Resize, check_map_options, finish_map, join_targets
from saliency.engine.probe import Probe, attach_debug_probes
from saliency.engine.record import ContextBuilder, recording
from saliency.engine.sharing import SharedForward
from saliency.engine.site import Site, make_site
from saliency.engine.state import evaluating, own_copy
from saliency.engine.targets import Target, select_scores, split_targets

Maps: TypeAlias = Any  # a Tensor; a list of them for a list of layers, a tuple for a tuple of inputs; a pair with debug
GetGradient: TypeAlias = Callable[[Any, Any], Tensor] | None


def saliency(
    model: Module,
    input: Input,
    target: Target,
    saliency_layer: Layer | Sequence[Layer] = "",
    resize: Resize = False,
    resize_mode: str = "bilinear",
    smooth: float = 0,
    context_builder: ContextBuilder = NullContext,
    gradient_to_saliency: Callable[[Tensor], Tensor] = maps.gradient_to_saliency,
    get_backward_gradient: GetGradient = targets.get_backward_gradient,
    debug: bool = False,
    *,
    additional_forward_args: Any = None,
    forward_kwargs: Mapping[str, Any] | None = None,
    attribute_to_layer_input: bool = False,
    layout: Layout = None,
    shared: SharedForward | None = None,
) -> Maps:
    """Explain the score of ``target`` at a layer: the engine of every gradient method.

    A probe records the layer's activation ``x``; the model runs forward, and backward down to the layer, inside
    ``context_builder()``; ``gradient_to_saliency(x)`` makes a map of ``x`` and ``x.grad``, which is resized and
    smoothed on the model's device. The model, the caller's tensors and the global state stay as they were.

    Args:
        model: any ``Module`` whose batch comes first; evaluated in ``eval`` mode, whatever mode it is in.
        input: (N, C, H, W), or a tuple of tensors for a model of several inputs.
        target: what is explained: a class index, one per sample, (N, K) indices for K maps from one forward pass, a
            float tensor shaped like the output, a tuple of indices, ``None`` for an only score, or a function of the
            output that returns one score per sample.
        saliency_layer: dotted name or module; ``''`` is the input, ``None`` the last layer with spatial output.
            A list of layers gives a list of maps from one forward pass.
        resize: ``True`` for the input's size, or (width, height). ``resize_mode`` as in ``F.interpolate``.
        smooth: standard deviation of a Gaussian filter, as a fraction of the map's longer side.
        context_builder: makes the context that both passes run in.
        gradient_to_saliency: makes a map (N, 1, h, w) of a tensor (N, C, h, w) that has its ``.grad``.
        get_backward_gradient: makes the output's gradient of output and target; ``None``: no backward pass.
        debug: also return a dict of probes, one per module, with data and gradients (of the last of K targets).
        additional_forward_args, forward_kwargs: reach the model's ``forward`` after the input.
        attribute_to_layer_input: probe what goes into the layer, not what comes out of it.
        layout: how the layer's activation holds its grid, where that cannot be told from its shape:
            ``'channels_first'``, ``'channels_last'``, tokens' (h, w), a function of the activation that returns
            (N, C, h, w), or ``'layer'`` to hand it on as it is.
        shared: a :func:`shared_forward` of the same model and input, which need not run again.

    Returns:
        (N, 1, h, w) at the layer's resolution or at ``resize``, raw scale, detached, in the model's dtype; (N, K, h, w)
        for K targets; a list for a list of layers; at the input, a tuple for the floating-point ones of a tuple;
        with ``debug`` (that, probes).

    Raises:
        ValueError: for an argument that cannot be used, a layer that is not reached, a gradient that is not.
    """
    check_map_options(resize, resize_mode, smooth, layout)
    call = make_call(model, input, additional_forward_args, forward_kwargs)
    several = isinstance(saliency_layer, (list, tuple))
    layers: Any = saliency_layer if several else [saliency_layer]
    if not layers:
        raise ValueError(f"saliency_layer={saliency_layer!r} names no layer; a layer or a list of layers is accepted.")
    sites = [make_site(call, layer, attribute_to_layer_input) for layer in layers]
    image = call.image

    def to_map(x: Tensor, site: Site) -> Tensor:
        # The input is (N, C, H, W), whatever the layout of the layers.
        reference, as_is = (image, layout) if site.name else (x, "layer" if x.ndim > 2 else layout)
        saliency = gradient_to_saliency(_to_grid(x, reference, as_is, site))
        if not isinstance(saliency, Tensor):
            raise ValueError(f"gradient_to_saliency={gradient_to_saliency!r} returned no tensor; a map is accepted.")
        return finish_map(saliency, reference, resize, resize_mode, smooth)

    pieces = (context_builder, get_backward_gradient, debug, shared)
    activations, probes = layer_gradient(call, target, sites, *pieces)
    results: list[Any] = []
    for site, tensors in zip(sites, activations, strict=True):
        joined = tuple(join_targets([to_map(x, site) for x in per_target], layout == "layer") for per_target in tensors)
        results.append(joined if not site.name and isinstance(input, (tuple, list)) else joined[0])
    result = results if several else results[0]
    return (result, probes) if debug else result


def layer_gradient(
    call: Call,
    target: Target,
    sites: Sequence[Site],
    context_builder: ContextBuilder = NullContext,
    get_backward_gradient: GetGradient = targets.get_backward_gradient,
    debug: bool = False,
    shared: SharedForward | None = None,
) -> tuple[list[list[list[Tensor]]], Mapping[str, Probe] | None]:
    """Activations with their ``.grad``, in the model's dtype: per site, per tensor there, per target; and the probes.

    One forward pass serves all sites and targets. Without ``get_backward_gradient`` there is no backward pass, and
    the activations have no gradient. Raises ``ValueError`` where no gradient reaches a site.
    """
    dtype = call.dtype
    # A model may set the gradient mode itself, around the layer; if that cuts it off, record from the input on.
    for record_all in [True] if debug else [False, True]:
        with evaluating(call.model, call.modules), ExitStack() as stack:
            torch.set_grad_enabled(record_all)
            probes = attach_debug_probes(call.model, debug)
            watching = [stack.enter_context(probe) for probe in (probes or {}).values()]
            record = recording if shared is None or record_all else shared.recording
            with record(call, sites, context_builder, get_backward_gradient is not None) as (output, recorded):
                tensors = [x for at_site in recorded for x in at_site]
                watched = [x for probe in watching for x in probe.data]
                gradients: list[Sequence[Tensor | None]]
                if get_backward_gradient is None:
                    gradients = [[None] * len(tensors)] * len(split_targets(target))
                else:
                    scores, wanted = select_scores(output, target, call.samples)
                    gradients = _differentiate(scores, wanted, get_backward_gradient, tensors, watched, shared)
                take = torch.Tensor.detach if shared is None else own_copy  # a method may overwrite what it is given
                rows = [[_with_gradient(take(x), dx) for x, dx in zip(tensors, of, strict=True)] for of in gradients]
        columns = zip(*rows, strict=True)
        activations = [[[_to_dtype(x, dtype) for x in next(columns)] for _ in at_site] for at_site in recorded]
        missed = _cut_off(sites, activations)
        if get_backward_gradient is None or not missed:
            return activations, probes
    raise ValueError(
        f"saliency_layer={missed[0]!r} is reached by no gradient: the score does not depend on it, or is computed "
        "without gradients (quantised, reentrant checkpointing); a layer on the way to the score is accepted."
    )


def _cut_off(sites: Sequence[Site], activations: list[list[list[Tensor]]]) -> list[str]:
    """The names of the sites that no gradient reached."""
    pairs = zip(sites, activations, strict=True)
    return [site.name for site, at_site in pairs if any(x.grad is None for per_target in at_site for x in per_target)]


def _differentiate(
    scores: Tensor,
    target: Any,
    get_backward_gradient: Callable[[Any, Any], Tensor],
    tensors: list[Tensor],
    watched: list[Tensor],
    shared: SharedForward | None,
) -> list[Sequence[Tensor | None]]:
    """For every target, the tensors' gradients; tensors of debug probes are given theirs in place."""
    columns = split_targets(target)
    gradients = []
    for i, column in enumerate(columns):
        gradient = get_backward_gradient(scores, column)
        if not isinstance(gradient, Tensor) or gradient.shape != scores.shape:
            raise ValueError(
                f"get_backward_gradient={get_backward_gradient!r} returned {describe(gradient)}; "
                f"a tensor of the output's shape {tuple(scores.shape)} is accepted."
            )
        found: Sequence[Tensor | None] = [None] * len(tensors + watched)
        if scores.requires_grad and shared is not None:
            found = shared.gradients(scores, tensors + watched, gradient)
        elif scores.requires_grad:
            retain = i + 1 < len(columns)
            found = torch.autograd.grad(scores, tensors + watched, gradient, retain_graph=retain, allow_unused=True)
        gradients.append(found[: len(tensors)])
        for x, dx in zip(watched, found[len(tensors) :], strict=True):
            x.grad = dx
    return gradients


def _with_gradient(x: Tensor, gradient: Tensor | None) -> Tensor:
    x.grad = gradient
    return x


def _to_dtype(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x if x.dtype == dtype else _with_gradient(x.to(dtype), None if x.grad is None else x.grad.to(dtype))


def _to_grid(x: Tensor, image: Tensor, layout: Layout, site: Site) -> Tensor:
    if x.shape[:1] != image.shape[:1] and not (layout == "layer" or callable(layout)):
        raise ValueError(
            f"saliency_layer={site.name!r} makes {tuple(x.shape)}, no batch of {len(image)} images; "
            "a layer with one row an image, or layout=function, is accepted."
        )
    grid = to_channels_first(x, image.shape[2:], layout, site.module)
    if grid is x or x.grad is None:
        return grid
    return _with_gradient(grid, to_channels_first(x.grad, image.shape[2:], layout, site.module))
