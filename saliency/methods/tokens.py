"""Tokens: shared by the methods that explain by attention, one target at a time from one forward pass."""

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
from saliency.engine.gradients import send_gradients
from saliency.engine.graph import node_of
from saliency.engine.layers import Layers, resolve_layer
from saliency.engine.layouts import Layout
from saliency.engine.maps import Attribution, Reduction, Resize, join_targets, sum_channels
from saliency.engine.record import ContextBuilder, Pass, recording
from saliency.engine.sending import retry_with_copies
from saliency.engine.settings import Settings
from saliency.engine.shared import SharedForward, check_shared
from saliency.engine.signatures import CallOptions, FinishOptions, Maps
from saliency.engine.silence import note_map
from saliency.engine.site import Site, make_site
from saliency.engine.state import evaluating, modules_of, on_device
from saliency.engine.streams import Streams
from saliency.engine.targets import Target, Targets
from saliency.methods.chains import check_whole, residuals
from saliency.methods.grids import grid_index


class AttentionOptions(CallOptions, FinishOptions, total=False):
    """Options of a method that forwards them to :func:`explain_tokens`."""

    reduction: Reduction
    shared: SharedForward | None


class Observed(NamedTuple):
    """One forward pass: the attentions that the score depends on, and the ``chosen`` ones, in the order of execution.

    The map covers the tokens that the first of those attends to.
    """

    call: Call
    targets: Targets
    recorded: Pass
    settings: Settings
    streams: Streams
    scores: list[Node]
    numbers: list[int]  # of all that the score depends on
    attentions: list[Attention]  # the attentions with these numbers
    chosen: list[int]  # the indices of those that are explained
    layout: Layout

    @property
    def chain(self) -> list[Attention]:
        """The chosen attentions."""
        return [self.attentions[at] for at in self.chosen]

    @property
    def cells(self) -> Tensor:
        """The indices of the image's tokens, on their device."""
        first = self.chain[0]
        tokens = torch.empty(1, first.keys, 1, device="cpu")
        size = self.call.image_of(first.shape[0]).shape[2:]
        index = grid_index(tokens, size, self.layout, None, first.seen)
        return on_device(index.flatten(), self.call.image.device)

    @property
    def crosses(self) -> bool:
        """Whether any of the chosen attentions is cross attention."""
        return any(self.streams.is_cross(self.numbers[at]) for at in self.chosen)

    def residuals(self) -> list[bool]:
        """Whether the queries of each chosen attention are among its keys: see :func:`chains.residuals`."""
        return residuals(self.call, self.streams, [self.numbers[at] for at in self.chosen], self.chain)

    def gradients(self, edges: Sequence[GradientEdge | None]) -> Iterator[tuple[list[Tensor | None], Tensor]]:
        """For each target, the score's gradients at some edges, and a distribution (N, queries) over what it reads.

        The score reads those queries of the last attention that have a gradient there: a class token, all
        tokens where they are averaged, or an object query. All have equal weight.
        """
        own, last = self.chain[-1], self.attentions[-1]
        of = last if last.queries == own.queries else own
        # Behind the last attention, tokens do not mix: the gradient at the last of these layers costs nothing.
        tokens = of.behind is not None and self.streams.is_all_behind(self.scores, of.behind.node)
        asked = [*edges, of.behind if tokens else of.edge]
        known = [at for at, edge in enumerate(asked) if edge is not None]
        for found in send_gradients(self.recorded, self.targets, [edge for edge in asked if edge], [], self.settings):
            gradients: list[Tensor | None] = [None] * len(asked)
            for at, gradient in zip(known, found, strict=True):
                gradients[at] = gradient
            yield gradients[:-1], _read(of, gradients[-1], tokens)


def _read(attention: Attention, gradient: Tensor | None, tokens: bool) -> Tensor:
    images, _, queries, _ = attention.shape
    if gradient is None:  # the attention does not depend on the image, as among object queries before they attend to it
        return torch.full((images, queries), 1 / queries, device=attention.device)
    by_query = gradient[:, None] if tokens else attention.by_query(gradient)
    reads = by_query.ne(0).flatten(3).any(3).any(1)
    shares = reads.to(torch.promote_types(gradient.dtype, torch.float32))
    return shares / shares.sum(1, keepdim=True).clamp(min=1)


Relevance: TypeAlias = Callable[[Observed], Iterator[Tensor]]  # yields (N, tokens) for each target


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
    """The maps that ``relevance`` makes of the tokens, on their grid: (N, 1, h, w); (N, K, h, w) for K targets.

    ``saliency_layer`` is a module that holds attention; ``''`` and ``None`` are the model. A method of one
    attention explains the last one inside; a method that follows all of them starts with the first one inside, or
    with the one at index ``start_layer``. ``without_gradients``: gradients are needed only behind the last
    attention, to find the queries that the score reads; ``context_builder``: the model runs in its context.
    ``reduction=None`` returns (N, tokens), including tokens that are not of the image. Other options as in
    :func:`saliency`. Raises ``ValueError`` for a network without attention, or with attention that the method does
    not support.
    """
    refuse_unknown(unknown)
    call = make_call(model, input, additional_forward_args, forward_kwargs)
    module = _one_layer(call, saliency_layer)
    check_finish(call, [""], resize, resize_mode, smooth, layout)
    check_shared(shared)
    if start_layer is not None and (not is_int(start_layer) or start_layer < 0):
        raise ValueError(f"start_layer={shown(start_layer)} is not the index of a layer; expected an int >= 0.")
    targets = Targets(target, call.samples)
    shape = "layer" if reduction is None else layout
    finish = Finish(call, shape, Attribution(reduction, of="activation"), resize, resize_mode, smooth)
    settings = Settings(context_builder, shared=shared)
    observing = _Observing(call, targets, settings, module, saliency_layer, start_layer, layout, without_gradients)
    maps, site = retry_with_copies(partial(_explain, observing, relevance, finish))
    result = join_targets(maps, shape == "layer")
    note_map(call, site, targets, [result], elsewhere=False)
    call.notices.report()
    return result


def _one_layer(call: Call, layer: Layers) -> Module:
    """The module whose attentions are explained."""
    if isinstance(layer, (list, tuple)):
        raise ValueError(
            f"saliency_layer={shown(layer)} is not one layer; expected the one whose attentions are explained "
            "(start_layer selects the first of them)."
        )
    whole = layer is None or (isinstance(layer, str) and not layer)
    return call.model if whole else resolve_layer(call.model, layer)  # type: ignore[arg-type]


def no_attention(call: Call) -> ValueError:
    """The error for a network without attention."""
    return ValueError(
        f"model={type(call.model).__name__} has no attention; expected a transformer with softmax attention over "
        "tokens: F.scaled_dot_product_attention, nn.MultiheadAttention, or softmax and matrix products."
    )


class _Observing(NamedTuple):
    """What is asked of a pass."""

    call: Call
    targets: Targets
    settings: Settings
    module: Module
    layer: Layers
    start: int | None
    layout: Layout
    without_gradients: bool


def _explain(asked: _Observing, relevance: Relevance, finish: Finish, again: bool) -> tuple[list[Tensor], Site]:
    call, settings = asked.call, replace(asked.settings, shared=None) if again else asked.settings
    attending, site = Attending(call.samples, copies=again), make_site(call, "")
    with evaluating(call.model, call.modules), ExitStack() as stack:
        torch.set_grad_enabled(True)
        record = recording if settings.shared is None else settings.shared.recording
        if asked.without_gradients and not again:  # the graph's structure is enough; its tensors fill the memory
            stack.enter_context(attending.forgetting())
        recorded = stack.enter_context(record(call, [site], settings.context_builder, attending=attending))
        observed = _observe(asked, settings, recorded, attending.found)
        first = observed.chain[0]
        name = first.layer or type(call.model).__name__
        at_tokens = Site(name, first.module or call.model, "output", 1, seen=first.seen)
        made = relevance(observed)
        whole = finish.layout == "layer"
        maps = [finish.maps(at_tokens, [x if whole else x[..., None]])[0] for x in made]
        return maps, at_tokens


def _observe(asked: _Observing, settings: Settings, recorded: Pass, found: Sequence[Attention]) -> Observed:
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
            f"model={type(call.model).__name__} has no attention between the image and the score that a gradient "
            "passes through (it runs without gradients, or for another output); expected one that the score depends on."
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
            raise ValueError(f"start_layer={asked.start} is not an attention's index; expected 0 to {len(chosen) - 1}.")
        chosen = chosen[asked.start :]
    return Observed(call, asked.targets, recorded, settings, streams, scores, numbers, attentions, chosen, asked.layout)
