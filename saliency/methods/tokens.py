"""Tokens: what methods share that explain by attention, one target after the other, from one forward pass."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import NamedTuple, NoReturn, TypeAlias

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node
from torch.nn import Module

from saliency.engine.attending import Attending
from saliency.engine.attention import Attention
from saliency.engine.call import Call, Input, make_call
from saliency.engine.checks import is_int, refuse_unknown, shown
from saliency.engine.contexts import NullContext
from saliency.engine.finishing import Finish, check_finish
from saliency.engine.gradients import How, send_gradients
from saliency.engine.graph import node_of
from saliency.engine.layers import Layers, resolve_layer
from saliency.engine.layouts import Layout
from saliency.engine.maps import Attribution, Reduction, Resize, join_targets, sum_channels
from saliency.engine.record import ContextBuilder, Pass, recording
from saliency.engine.sending import keeping_copies
from saliency.engine.shared import SharedForward, check_shared
from saliency.engine.signatures import CallOptions, FinishOptions, Maps
from saliency.engine.silence import note_map
from saliency.engine.site import Site, make_site
from saliency.engine.state import evaluating, modules_of
from saliency.engine.streams import Streams
from saliency.engine.targets import Target, Targets
from saliency.methods.chains import check_whole, residuals
from saliency.methods.grids import grid_index


class AttentionOptions(CallOptions, FinishOptions, total=False):
    """Options of a method that hands them on to :func:`explain_tokens`."""

    reduction: Reduction
    shared: SharedForward | None


class Observed(NamedTuple):
    """One forward pass: the attentions that the score is made of, and the ``chosen`` ones, in the order they ran.

    The map is one of what the first of those attends to.
    """

    call: Call
    targets: Targets
    recorded: Pass
    how: How
    streams: Streams
    scores: list[Node]
    numbers: list[int]  # of all that the score is made of
    attentions: list[Attention]  # those
    chosen: list[int]  # which of them are explained
    layout: Layout

    @property
    def chain(self) -> list[Attention]:
        """The chosen attentions."""
        return [self.attentions[at] for at in self.chosen]

    @property
    def cells(self) -> Tensor:
        """Which of the tokens are those of the image, on its device."""
        first = self.chain[0]
        tokens = torch.empty(1, first.keys, 1, device="cpu")
        size = self.call.image_of(first.shape[0]).shape[2:]
        index = grid_index(tokens, size, self.layout, None, first.seen)
        return index.flatten().to(self.call.image.device, non_blocking=True)

    @property
    def crosses(self) -> bool:
        """Is there cross attention among the chosen?"""
        return any(self.streams.is_cross(self.numbers[at]) for at in self.chosen)

    def residuals(self) -> list[bool]:
        """Of each chosen attention, whether its queries are among its keys: see :func:`chains.residuals`."""
        return residuals(self.call, self.streams, [self.numbers[at] for at in self.chosen], self.chain)

    def gradients(self, edges: Sequence[GradientEdge | None]) -> Iterator[tuple[list[Tensor | None], Tensor]]:
        """For each target the score's gradients at some edges, and the share (N, queries) that it reads of each query.

        What is read of the last attention is what has a gradient there: a class token, all tokens where they are
        averaged, an object query. Each has the same share.
        """
        own, last = self.chain[-1], self.attentions[-1]
        of = last if last.queries == own.queries else own
        # Behind the attention tokens go their own ways: at the last of those the gradient takes no time.
        tokens = of.behind is not None and self.streams.is_all_behind(self.scores, of.behind.node)
        asked = [*edges, of.behind if tokens else of.edge]
        known = [at for at, edge in enumerate(asked) if edge is not None]
        for found in send_gradients(self.recorded, self.targets, [edge for edge in asked if edge], [], self.how):
            gradients: list[Tensor | None] = [None] * len(asked)
            for at, gradient in zip(known, found, strict=True):
                gradients[at] = gradient
            yield gradients[:-1], _read(of, gradients[-1], tokens)


def _read(attention: Attention, gradient: Tensor | None, tokens: bool) -> Tensor:
    images, _, queries, _ = attention.shape
    if gradient is None:  # the attention is not made of the image, as among object queries before they have seen it
        return torch.full((images, queries), 1 / queries, device=attention.device)
    by_query = gradient[:, None] if tokens else attention.by_query(gradient)
    reads = by_query.ne(0).flatten(3).any(3).any(1)
    shares = reads.to(torch.promote_types(gradient.dtype, torch.float32))
    return shares / shares.sum(1, keepdim=True).clamp(min=1)


Relevance: TypeAlias = Callable[[Observed], Iterator[Tensor]]  # gives (N, tokens) for each target


def explain_tokens(
    model: Module,
    input: Input,
    target: Target,
    saliency_layer: Layers,
    relevance: Relevance,
    start_layer: int | None,
    without_gradients: bool = False,
    context_builder: ContextBuilder = NullContext,
    /,
    *,
    reduction: Reduction = sum_channels,
    shared: SharedForward | None = None,
    resize: Resize = False,
    resize_mode: str = "bilinear",
    smooth: float = 0,
    layout: Layout = None,
    additional_forward_args: object = None,
    forward_kwargs: Mapping[str, object] | None = None,
    **unknown: NoReturn,
) -> Maps:
    """The maps of what ``relevance`` makes of the tokens, on their grid: (N, 1, h, w); (N, K, h, w) for K targets.

    ``saliency_layer`` is a module that holds attention; ``''`` and ``None`` are the model. A method of one attention
    explains the last in there, one that follows all starts with the first in there, or with number ``start_layer`` of
    those. ``without_gradients`` says that none is asked for but behind the last attention, to know what is read there;
    ``context_builder`` makes the context that the model runs in.
    ``reduction=None`` gives (N, tokens), with all that are none of the image. Other options as for
    :func:`saliency`. Raises ``ValueError`` for a network without attention, and for one that it is not defined for.
    """
    refuse_unknown(unknown)
    call = make_call(model, input, additional_forward_args, forward_kwargs)
    module = _one_layer(call, saliency_layer)
    check_finish(call, [""], resize, resize_mode, smooth, layout)
    check_shared(shared)
    if start_layer is not None and (not is_int(start_layer) or start_layer < 0):
        raise ValueError(f"start_layer={shown(start_layer)} is not the number of a layer; expected an int >= 0.")
    targets = Targets(target, call.samples)
    shape = "layer" if reduction is None else layout
    finish = Finish(call, shape, Attribution(reduction, of="activation"), resize, resize_mode, smooth)
    how = How(context_builder, shared=shared)
    observing = _Observing(call, targets, how, module, saliency_layer, start_layer, layout, without_gradients)
    maps, site = keeping_copies(partial(_explain, observing, relevance, finish))
    result = join_targets(maps, shape == "layer")
    note_map(call, site, targets, [result], elsewhere=False)
    call.notices.report()
    return result


def _one_layer(call: Call, layer: Layers) -> Module:
    """The module whose attentions are explained."""
    if isinstance(layer, (list, tuple)):
        raise ValueError(
            f"saliency_layer={shown(layer)} is several layers; expected one, in which the attentions begin that are "
            "followed (start_layer counts them)."
        )
    whole = layer is None or (isinstance(layer, str) and not layer)
    return call.model if whole else resolve_layer(call.model, layer)  # type: ignore[arg-type]


def no_attention(call: Call) -> ValueError:
    """The error of a network that does not attend."""
    return ValueError(
        f"model={type(call.model).__name__} has no attention; expected a transformer that attends by a softmax over "
        "tokens: F.scaled_dot_product_attention, nn.MultiheadAttention, or softmax and matrix products."
    )


class _Observing(NamedTuple):
    """What is asked of a pass."""

    call: Call
    targets: Targets
    how: How
    module: Module
    layer: Layers
    start: int | None
    layout: Layout
    without_gradients: bool


def _explain(asked: _Observing, relevance: Relevance, finish: Finish, again: bool) -> tuple[list[Tensor], Site]:
    call, how = asked.call, replace(asked.how, shared=None) if again else asked.how
    attending, site = Attending(call.samples, copies=again), make_site(call, "")
    with evaluating(call.model, call.modules), ExitStack() as stack:
        torch.set_grad_enabled(True)
        record = recording if how.shared is None else how.shared.recording
        if asked.without_gradients and not again:  # the graph says what feeds what; its tensors would fill the memory
            stack.enter_context(attending.forgetting())
        recorded = stack.enter_context(record(call, [site], how.context_builder, attending=attending))
        observed = _observe(asked, how, recorded, attending.found)
        first = observed.chain[0]
        name = first.layer or type(call.model).__name__
        at_tokens = Site(name, first.module or call.model, "output", 1, seen=first.seen)
        made = relevance(observed)
        whole = finish.layout == "layer"
        maps = [finish.maps(at_tokens, [x if whole else x[..., None]])[0] for x in made]
        return maps, at_tokens


def _observe(asked: _Observing, how: How, recorded: Pass, found: Sequence[Attention]) -> Observed:
    call = asked.call
    if not found:
        raise no_attention(call)
    image = recorded.tensors[0][sum(x.is_floating_point() for x in call.inputs[: call.image_at])]
    streams = Streams(found, [node for node in [node_of(image)] if node is not None])
    scores = [node for scores, _ in asked.targets.select(recorded.output) if (node := node_of(scores)) is not None]
    numbers = streams.of(scores)
    attentions = [found[number] for number in numbers]
    if not attentions:
        raise ValueError(
            f"model={type(call.model).__name__} has no attention between the image and the score that a gradient goes "
            "through (it is computed without gradients, or for another output); expected one on the way to the score."
        )
    for attention in attentions:
        attention.check_unchanged()
    inside = modules_of(asked.module)
    chosen = [at for at, of in enumerate(attentions) if of.module in inside]
    if not chosen:
        names = ", ".join(dict.fromkeys(of.layer for of in attentions))
        raise ValueError(f"saliency_layer={shown(asked.layer)} holds no attention; expected one of {names}.")
    if asked.start is None:
        chosen = chosen[-1:]
        check_whole(call, attentions[chosen[0]])
    else:
        chosen = list(range(chosen[0], len(attentions)))
        if asked.start >= len(chosen):
            raise ValueError(f"start_layer={asked.start} is none of the attentions; expected 0 to {len(chosen) - 1}.")
        chosen = chosen[asked.start :]
    return Observed(call, asked.targets, recorded, how, streams, scores, numbers, attentions, chosen, asked.layout)
