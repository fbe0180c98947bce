"""The driver: probe a layer, run the model forward and backward in a context, turn the gradient into a map."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import NoReturn, TypeAlias

import torch
from torch import Tensor
from torch.nn import Module

from saliency.engine import maps, targets
from saliency.engine.call import Call, Input, make_call
from saliency.engine.checks import check_flag, refuse_unknown, shown
from saliency.engine.contexts import NullContext
from saliency.engine.finishing import Finish, check_finish
from saliency.engine.layers import Layer, Layers
from saliency.engine.layouts import Layout
from saliency.engine.maps import Attribution, Resize, join_targets
from saliency.engine.paths import Path
from saliency.engine.probe import Probe, attach_debug_probes
from saliency.engine.record import ContextBuilder
from saliency.engine.sending import overwrites_earlier_view, retry_with_copies
from saliency.engine.settings import GetGradient, Settings, check_context, check_settings, scaled
from saliency.engine.shared import SharedForward
from saliency.engine.signatures import Maps, typed
from saliency.engine.silence import note_map, note_one_position
from saliency.engine.site import Site, SiteError, make_site
from saliency.engine.state import evaluating
from saliency.engine.targets import Target, Targets
from saliency.engine.walking import take_gradients

# The sites; maps of all targets by site and tensor; deltas by site; the probes
_Explained: TypeAlias = tuple[list[Site], list[tuple[Tensor, ...]], Sequence[Tensor], Mapping[str, Probe] | None]


@typed  # type: ignore[arg-type]  # an unknown option is refused by name
def saliency(
    model: Module,
    input: Input,
    target: Target,
    saliency_layer: Layers = "",
    resize: Resize = False,
    resize_mode: str = "bilinear",
    smooth: float = 0,
    context_builder: ContextBuilder = NullContext,
    gradient_to_saliency: Callable[[Tensor], Tensor] = maps.gradient_to_saliency,
    get_backward_gradient: GetGradient = targets.get_backward_gradient,
    debug: bool = False,
    *,
    additional_forward_args: object = None,
    forward_kwargs: Mapping[str, object] | None = None,
    attribute_to_layer_input: bool = False,
    layout: Layout = None,
    shared: SharedForward | None = None,
    path: Path | None = None,
    internal_batch_size: int | None = None,
    call: int | str = -1,
    return_convergence_delta: bool = False,
    multiply_by_inputs: bool = True,
    materialize_grads: bool = False,
    **unknown: NoReturn,
) -> Maps:
    """Explain the score of ``target`` at a layer: the engine of every gradient method.

    A probe records the layer's activation ``x``. The model runs forward, then backward down to the layer, inside
    ``context_builder()``. ``gradient_to_saliency(x)`` turns ``x`` and ``x.grad`` into a map, which is resized and
    smoothed on the model's device. The model, the caller's tensors and all global state are left unchanged.

    Args:
        model: any ``Module`` with the batch as its first axis; runs in ``eval`` mode, whatever mode it is in.
        input: (N, C, H, W), or with one or three spatial axes, or a clip (B, T, C, H, W), which the model's first
            convolution tells from a volume; a tuple of tensors for a model with several inputs.
        target: what is explained: a class index, one per sample, (N, K) indices for K maps from one forward pass, a
            float tensor shaped like the output, a tuple of indices, ``None`` for a single score, or a function of the
            output that returns one score per sample.
        saliency_layer: dotted name or module; ``''`` is the input, ``None`` the last layer with spatial output; a list
            of layers gives a list of maps from one forward pass.
        resize: ``True`` for the input's size, or (width, height), innermost axis first. ``resize_mode`` as in
            ``F.interpolate``; 'bilinear' is linear along each axis of any map.
        smooth: standard deviation of a Gaussian filter, as a fraction of the map's longest side.
        context_builder: returns the context that both passes run in.
        gradient_to_saliency: turns a tensor (N, C, h, w) with its ``.grad`` into a map (N, 1, h, w).
        get_backward_gradient: computes the output's gradient from output and target; ``None``: no backward pass.
        debug: also return a dict of probes, one per module, with data and gradients (for the last of K targets).
        additional_forward_args, forward_kwargs: passed to the model's ``forward`` after the input.
        attribute_to_layer_input: probe the layer's input instead of its output.
        layout: where the activation has its grid, if the pass does not show it: ``'channels_first'``, tokens' (h, w),
            ``'channels_last'``, a function that returns (N, C, h, w); ``'layer'`` keeps the layer's own shape.
        shared: a :func:`shared_forward` of the same model and input, reused in place of a new pass.
        path: take gradients along a path such as ``line()``, ``internal_batch_size`` points at a time.
        call: which call of a layer that runs several times is explained, or ``'all'`` for the sum over its calls.
        return_convergence_delta: also return by how much a path's attribution differs from the change of the score.
        multiply_by_inputs: whether an attribution is the gradient times the input, or the gradient alone.
        materialize_grads: return zeros at a layer that the score does not depend on, instead of raising.

    Returns:
        (N, 1, h, w) at the layer's resolution or at ``resize``, raw scale, detached, in the model's dtype; (N, K, h, w)
        for K targets; (B, T, h, w) of frames; a list for a list of layers; for a tuple of inputs, a tuple of maps of
        the floating-point ones; with ``debug`` (that, probes), with ``return_convergence_delta`` (that, deltas).

    Raises ``ValueError`` for invalid arguments, a layer that does not run, or one that no gradient reaches.
    """
    refuse_unknown(unknown)
    asked = make_call(model, input, additional_forward_args, forward_kwargs)
    layers = as_list(saliency_layer)
    check_finish(asked, layers, resize, resize_mode, smooth, layout)
    whole = isinstance(gradient_to_saliency, Attribution) and gradient_to_saliency.reduction is None
    given = (context_builder, get_backward_gradient, materialize_grads, shared, path, internal_batch_size)
    settings = Settings(*given, return_convergence_delta, multiply_by_inputs, debug)
    check_flag("attribute_to_layer_input", attribute_to_layer_input)
    check_settings(settings, gradient_to_saliency, layers, call)
    settings, gradient_to_saliency = scaled(settings, gradient_to_saliency)
    check_context(settings)
    finish = Finish(asked, "layer" if whole else layout, gradient_to_saliency, resize, resize_mode, smooth)
    parsed = Targets(target, asked.samples)

    def make_sites(anew: bool) -> list[Site]:
        return [make_site(asked, layer, attribute_to_layer_input, target, call, whole, anew) for layer in layers]

    explain = partial(_explain, make_sites, asked, parsed, settings, finish)
    sites, found, deltas, probes = retry_with_copies(explain)
    results = []
    for layer, site, joined in zip(layers, sites, found, strict=True):
        as_tuple = isinstance(input, (tuple, list)) if layer == "" else whole and len(joined) > 1
        results.append(joined if as_tuple else joined[0])
        note_map(asked, site, parsed, () if materialize_grads else joined)  # zeros may have been requested
    asked.notices.report()
    several = isinstance(saliency_layer, (list, tuple))
    result = results if several else results[0]
    if return_convergence_delta:
        return result, deltas if several else deltas[0]
    return (result, probes) if debug else result


def as_list(layers: Layers) -> list[Layer]:
    """The layers of a call; ``ValueError`` if there are none."""
    listed: list[Layer] = [*layers] if isinstance(layers, (list, tuple)) else [layers]  # type: ignore[list-item]
    if not listed:
        raise ValueError(f"saliency_layer={shown(layers)} is not a layer; expected one, or a non-empty list of them.")
    return listed


def _explain(
    make_sites: Callable[[bool], list[Site]],
    call: Call,
    targets: Targets,
    settings: Settings,
    finish: Finish,
    again: bool,
) -> _Explained:
    """Explain the targets; where no gradient reaches a site, try once or twice more.

    A model may disable gradients itself around the layer, or write to a view that was made before it: then everything
    is recorded, from the input on. A layer that the search remembers may have been found for another target, or before
    the model changed: then it searches anew.
    """
    settings = replace(settings, shared=None) if again else settings
    explain = partial(_explain_once, call, targets, settings, finish)
    sites = make_sites(False)
    try:
        return explain(sites, record_all=settings.debug)
    except Exception as error:
        if not (isinstance(error, SiteError) or overwrites_earlier_view(error)):
            raise
        call.notices.clear()
    try:
        return explain(sites, record_all=True)
    except SiteError as cut:
        if not cut.site.found:
            raise
        call.notices.clear()
    return explain(make_sites(True), record_all=True)


def _explain_once(
    call: Call, targets: Targets, settings: Settings, finish: Finish, sites: list[Site], record_all: bool
) -> _Explained:
    """Explain the targets: the maps of each are finished before the gradients of the next are computed."""
    layer_shaped, found = finish.layout == "layer", []
    with evaluating(call.model, call.modules), ExitStack() as stack:
        torch.set_grad_enabled(record_all)
        probes = attach_debug_probes(call.model, settings.debug)
        opened = [stack.enter_context(probe) for probe in (probes or {}).values()]
        walked = take_gradients(call, targets, sites, replace(settings, probes=opened))
        if isinstance(walked.activations, Generator):
            stack.callback(walked.activations.close)  # it keeps the pass open, and an error would keep it alive
        for each in walked.activations:
            found.append([finish.maps(*of) for of in zip(sites, each, strict=True)])
            for site, tensors in zip(sites, each, strict=True) if not layer_shaped else ():
                note_one_position(call, site, targets, tensors[0])
        return sites, _join(found, layer_shaped), walked.deltas, probes


def _join(found: list[list[list[Tensor]]], layer_shaped: bool) -> list[tuple[Tensor, ...]]:
    """Regroup maps by target, site and tensor into maps by site and tensor, each with all targets."""
    return [
        tuple(join_targets(list(per), layer_shaped) for per in zip(*of_targets, strict=True))
        for of_targets in zip(*found, strict=True)
    ]
