"""Chains: attentions one behind the other, through which the relevance of tokens is followed back from the score."""

from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from typing import NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from saliency.engine.attention import Attention
from saliency.engine.call import Call
from saliency.engine.streams import Streams

Rows: TypeAlias = slice | Tensor
# (step, relevance (N, rows), rows) -> what stays where it is (N, rows), and what goes to the keys (N, keys)
Transition: TypeAlias = Callable[["Step", Tensor, Rows], tuple[Tensor, Tensor]]


class Step(NamedTuple):
    """An attention of a chain, and the score's gradient there. ``residual``: are its queries among its keys?

    ``modified`` is the gradient that rules send there, which makes relevance of its weights.
    """

    attention: Attention
    gradient: Tensor | None
    residual: bool
    modified: Tensor | None = None


def refused(call: Call, attention: Attention, what: str) -> ValueError:
    """The error of a network whose attentions are no chain."""
    return ValueError(
        f"model={type(call.model).__name__} {what} in layer {attention.layer!r}, through which relevance is not "
        "followed; expected attention among all tokens of an image, which are the same in every layer, as in ViT."
    )


def check_whole(call: Call, attention: Attention) -> None:
    """Raise ``ValueError`` for an attention that is not among the tokens of an image."""
    images, _, queries, keys = attention.shape
    tokens = {grid.tokens for grid in attention.seen}
    channels = None if attention.value is None else attention.value.shape[-1]
    if attention.in_parts or images != len(call.image_of(images)):
        raise refused(call, attention, f"attends within windows or other parts of an image, of {keys} tokens,")
    if channels in tokens and keys not in tokens:
        raise refused(call, attention, f"attends to {keys} channels, not to tokens,")
    if queries > keys:
        raise refused(call, attention, f"pools its keys, {keys} for {queries} queries,")


def residuals(call: Call, streams: Streams, numbers: Sequence[int], attentions: Sequence[Attention]) -> list[bool]:
    """Of each attention of a chain, whether its queries are among its keys. Raises ``ValueError`` for what is none.

    Behind those among all tokens, class tokens may join in front of them, for good or for class attention alone, or a
    query that is no token may read them out (attention pooling).
    """
    found: list[bool] = []
    square = [of for of in attentions if of.queries == of.keys]
    tokens = square[0].keys if square else None
    for number, attention in zip(numbers, attentions, strict=True):
        if streams.is_cross(number):
            raise refused(call, attention, "has cross attention")
    for attention in attentions:
        check_whole(call, attention)
        queries, keys = attention.queries, attention.keys
        learnt = not streams.looks_at_image(attention.reads[0])
        if queries == keys == tokens:
            found.append(True)
        elif queries == keys and _in_front(square[0]) == _in_front(attention) - keys + square[0].keys:
            found.append(True)
            tokens = keys
        elif tokens is not None and keys == tokens + queries:
            found.append(True)
        elif (keys == tokens and learnt) or len(attentions) == 1:
            found.append(False)
        else:
            raise refused(call, attention, f"has {queries} queries of {keys} tokens, where there were {tokens},")
    return found


def _in_front(attention: Attention) -> int:
    """How many of its keys stand in front of those of the image, as far as the pass has shown."""
    return next((grid.start for grid in reversed(attention.seen) if grid.tokens == attention.keys), 0)


def follow(steps: Sequence[Step], read: Tensor, transition: Transition) -> Tensor:
    """The relevance (N, tokens) in front of a chain, of what the score reads behind it (N, queries): its last first."""
    relevance = read
    for step in reversed(steps):
        queries, keys = step.attention.queries, step.attention.keys
        if step.residual:
            # In front of the class attention there are no class tokens, which stand first; behind it they are all.
            relevance = F.pad(relevance, (0, max(0, keys - relevance.shape[1])))[:, -keys:]
        front = relevance[:, :queries]
        rows = _rows(front)
        stays, goes = transition(step, front[:, rows], rows)
        if step.residual:
            stays = torch.zeros_like(front).index_copy(1, rows, stays) if isinstance(rows, Tensor) else stays
            goes = goes + torch.cat([stays, relevance[:, queries:]], 1)
        relevance = goes
    return relevance


def _rows(relevance: Tensor) -> Rows:
    """The queries that matter: a few at the end of a network, where a class token is read. Only the CPU can wait."""
    if relevance.device.type != "cpu":
        return slice(None)
    rows = relevance.ne(0).any(0).nonzero().flatten()
    return slice(None) if 2 * len(rows) > relevance.shape[1] else rows


def parts(step: Step, rows: Rows = slice(None)) -> Iterator[tuple[Tensor, Tensor]]:
    """The attention, or its relevance, and the score's derivative by it, (N, heads, rows, keys), by a few heads."""
    attention, gradient = step.attention, step.gradient
    for heads in attention.heads():
        weights = attention.weights(heads, rows)
        derivative = torch.zeros_like(weights) if gradient is None else attention.derivative(gradient, heads, rows)
        if step.modified is not None:
            weights = weights * attention.derivative(step.modified, heads, rows)
        yield weights, derivative


def raising(step: Step, rows: Rows = slice(None)) -> Tensor:
    r"""The attention that raises the score, :math:`\frac{1}{H} \sum_h \max(0, A_h \odot dA_h)`, (N, rows, keys)."""
    every = (torch.mul(*part).relu_().sum(1) for part in parts(step, rows))
    return reduce(torch.add, every) / step.attention.shape[1]
