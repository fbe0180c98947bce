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
from saliency.engine.checks import check_count, check_flag, is_int, refuse_unknown, shown
from saliency.engine.comparing import without_reference
from saliency.engine.contexts import NullContext, told_by
from saliency.engine.finishing import Finish, check_finish
from saliency.engine.gradients import GetGradient, How
from saliency.engine.layers import Layer, Layers
from saliency.engine.layouts import Layout
from saliency.engine.maps import Attribution, Resize, join_targets
from saliency.engine.paths import Path
from saliency.engine.probe import Probe, attach_debug_probes
from saliency.engine.record import ContextBuilder
from saliency.engine.sending import keeping_copies
from saliency.engine.shared import SharedForward, check_shared
from saliency.engine.signatures import Maps, typed
from saliency.engine.silence import note_map, note_one_position
from saliency.engine.site import Site, SiteError, make_site
from saliency.engine.state import evaluating
from saliency.engine.targets import Target, Targets
from saliency.engine.walking import Walking, along

_FLAGS = ("debug", "attribute_to_layer_input", "return_convergence_delta", "multiply_by_inputs", "materialize_grads")
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
    how = How(context_builder, get_backward_gradient, materialize_grads, shared)
    walking = Walking(path, internal_batch_size, return_convergence_delta)
    flags = (debug, attribute_to_layer_input, return_convergence_delta, multiply_by_inputs, materialize_grads)
    _check_pieces(how, gradient_to_saliency, flags)
    _check_combination(walking, how, layers, call, gradient_to_saliency, debug)
    if not multiply_by_inputs:
        walking, gradient_to_saliency = _unscaled(walking, gradient_to_saliency)
    _check_context(walking.path, context_builder)
    finish = Finish(asked, "layer" if whole else layout, gradient_to_saliency, resize, resize_mode, smooth)
    parsed = Targets(target, asked.samples)

    def make_sites(anew: bool) -> list[Site]:
        return [make_site(asked, layer, attribute_to_layer_input, target, call, whole, anew) for layer in layers]

    explain = partial(_explain, make_sites, asked, parsed, how, walking, finish, debug)
    sites, found, deltas, probes = keeping_copies(explain)
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
    how: How,
    walking: Walking,
    finish: Finish,
    debug: bool,
    again: bool,
) -> _Explained:
    """Explain the targets: the maps of each are finished before the gradients of the next are computed."""
    how = replace(how, shared=None) if again else how
    sites = make_sites(False)
    # A model may disable gradients itself around the layer; if that cuts it off, record from the input on. A
    # remembered layer may have been found for another target, or before the model changed: then search again.
    ways = [(debug, False), (True, False), (True, True)]
    while True:
        record_all, anew = ways.pop(0)
        sites = make_sites(True) if anew else sites
        try:
            with evaluating(call.model, call.modules), ExitStack() as stack:
                torch.set_grad_enabled(record_all)
                probes = attach_debug_probes(call.model, debug)
                watching = replace(how, probes=[stack.enter_context(probe) for probe in (probes or {}).values()])
                walked = along(call, targets, sites, walking, watching)
                every, found = walked.activations, []
                if isinstance(every, Generator):
                    stack.callback(every.close)  # it keeps the pass open, and an error would keep it alive
                for each in every:
                    found.append([finish.maps(*of) for of in zip(sites, each, strict=True)])
                    for site, tensors in zip(sites, each, strict=True) if finish.layout != "layer" else ():
                        note_one_position(call, site, targets, tensors[0])
                return sites, _join(found, finish.layout == "layer"), walked.deltas, probes
        except SiteError as cut:
            call.notices.clear()
            if not ways or (record_all and not cut.site.found):
                raise


def _check_pieces(how: How, gradient_to_saliency: object, flags: Sequence[object]) -> None:
    """Raise ``ValueError`` for an invalid piece of the driver."""
    check_shared(how.shared)
    if not (how.get_backward_gradient is None or callable(how.get_backward_gradient)):
        raise ValueError(
            f"get_backward_gradient={shown(how.get_backward_gradient)} is not a function; expected one of output and "
            "target, or None for no backward pass."
        )
    if not callable(gradient_to_saliency):
        raise ValueError(
            f"gradient_to_saliency={shown(gradient_to_saliency)} is not a function; expected one of an activation with "
            "its gradient."
        )
    for argument, flag in zip(_FLAGS, flags, strict=True):
        check_flag(argument, flag)


def _join(found: list[list[list[Tensor]]], layer_shaped: bool) -> list[tuple[Tensor, ...]]:
    """Regroup maps by target, site and tensor into maps by site and tensor, each with all targets."""
    return [
        tuple(join_targets(list(per), layer_shaped) for per in zip(*of_targets, strict=True))
        for of_targets in zip(*found, strict=True)
    ]


def _unscaled(
    walking: Walking, gradient_to_saliency: Callable[[Tensor], Tensor]
) -> tuple[Walking, Callable[[Tensor], Tensor]]:
    """The path and the reduction of a method that does not multiply by inputs."""
    if walking.path is not None:
        return walking._replace(path=walking.path.unscaled()), gradient_to_saliency
    if isinstance(gradient_to_saliency, Attribution):
        gradient_to_saliency = gradient_to_saliency.unscaled()
    return walking, gradient_to_saliency


def _check_combination(
    walking: Walking,
    how: How,
    layers: list[Layer],
    call: int | str,
    gradient_to_saliency: Callable[[Tensor], Tensor],
    debug: bool,
) -> None:
    """Raise ``ValueError`` for options that cannot be combined."""
    path, attribution = walking.path, isinstance(gradient_to_saliency, Attribution)
    if path is None:
        completes = walking.delta and attribution and not debug and told_by(how.context_builder, "completes", False)
        if walking.size is not None:
            raise ValueError(
                f"internal_batch_size={shown(walking.size)} is not possible without a path; expected None."
            )
        if walking.delta and not completes:
            conserving = "an attribution in a context that conserves the score, without debug=True"
            _refuse_without_path("return_convergence_delta", True, f"path=line(...), or {conserving}")
        return
    if not isinstance(path, Path):
        raise ValueError(f"path={shown(path)} is not a path; expected line(...), noise(...), between(...) or None.")
    if walking.size is not None:
        check_count("internal_batch_size", walking.size)
    at_once = path.is_one_pass and walking.size is None
    refused = {"debug=True": debug and not at_once, "get_backward_gradient=None": how.get_backward_gradient is None}
    refused["shared"] = how.shared is not None and not (path.at_layer and "" not in layers)
    refused["return_convergence_delta=True"] = walking.delta and not (attribution and path.spans)
    for argument, is_asked in refused.items():
        if is_asked:
            raise ValueError(f"{argument} is not possible on this path; expected a method without a path.")
    if path.at_layer and not (is_int(call) and call == -1) and layers != [""]:
        raise ValueError(f"call={shown(call)} is not possible on a path of the layer's own; expected -1, its last.")
    if path.fold.attribution and not attribution:
        raise ValueError(
            f"gradient_to_saliency={shown(gradient_to_saliency)} is not possible on a path whose fold is an "
            "attribution; expected Attribution(sum_channels), Attribution(max_channels) or Attribution(None)."
        )


def _refuse_without_path(argument: str, value: object, expected: str) -> NoReturn:
    raise ValueError(f"{argument}={shown(value)} is not possible without a path; expected {expected}.")


def _check_context(path: Path | None, context_builder: ContextBuilder) -> None:
    """Raise ``ValueError`` for a context that does not send back derivatives, on a path that needs them."""
    if not callable(context_builder) or (path is None and not isinstance(context_builder, type)):
        return
    carries = told_by(context_builder, "carries", "gradient")
    if carries == "differences" and (path is None or path.at_layer or not path.spans):
        raise without_reference(context_builder)
    if carries == "relevance" and path is not None and path.displaces:
        raise ValueError(
            f"context_builder={shown(context_builder)} is not possible on a path that multiplies gradients by a "
            "displacement; expected a context that sends back gradients."
        )
