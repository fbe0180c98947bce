"""Attention: which token attends to which in a forward pass of the unmodified model, and how a score depends on it.

A fused attention, ``F.scaled_dot_product_attention``, is never spelled out: its weights are computed from the queries
and keys on demand, a few heads at a time, and the derivative of the score with respect to them from the values and the
gradient at the kernel's result: for out = A v, dA = dout vᵀ.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.nn import Module
from torch.utils._pytree import tree_leaves

from saliency.engine.attributes import version_of
from saliency.engine.watching import Grid, Watching

_AT_ONCE = 2**18  # weights computed at once if there are several heads: they fit into a cache


@dataclass(eq=False, kw_only=True)
class Attention:
    """One attention of a forward pass, of shape (N, heads, queries, keys).

    ``edge`` is where :meth:`derivative` needs the gradient, and ``output`` the edge of the result; ``reads`` are the
    graph nodes that produced the queries and keys, ``values`` the one that produced the values. ``seen`` are the grids
    that the pass had shown so far; ``module`` is the innermost module around the attention, and ``layer`` its name.
    ``query``, ``key`` and ``value`` are (N, heads, tokens, channels), where known. ``behind`` is the edge of the last
    tensor (N, queries, ...) computed after it.
    """

    shape: tuple[int, int, int, int]
    in_parts: bool  # does it have further axes, such as windows or blocks?
    edge: GradientEdge | None
    output: GradientEdge | None
    reads: tuple[Node | None, ...]
    values: Node | None
    query: Tensor | None
    key: Tensor | None
    value: Tensor | None
    seen: list[Grid]
    layer: str
    module: Module | None
    block: "Block | None" = None
    behind: GradientEdge | None = None
    versions: list[tuple[Tensor, int]] = field(init=False)

    def __post_init__(self) -> None:
        self.versions = [(x, version_of(x)) for x in vars(self).values() if isinstance(x, Tensor)]

    def check_unchanged(self) -> None:
        """Raise ``RuntimeError``, as autograd does, if the model has since overwritten a tensor that is needed."""
        if any(version_of(x) != version for x, version in self.versions):
            raise overwritten()

    @property
    def device(self) -> torch.device:
        """The device of its tensors."""
        return self.versions[0][0].device

    @property
    def queries(self) -> int:
        """The number of tokens that attend."""
        return self.shape[2]

    @property
    def keys(self) -> int:
        """The number of tokens that are attended to."""
        return self.shape[3]

    def heads(self) -> Iterator[slice]:
        """All heads in slices of as many as need little memory, at least one."""
        images, heads, queries, keys = self.shape
        step = max(1, min(heads, _AT_ONCE // max(1, images * queries * keys)))
        yield from (slice(at, min(at + step, heads)) for at in range(0, heads, step))

    def weights(self, heads: slice, rows: slice | Tensor = slice(None)) -> Tensor:
        """The attention weights (N, heads, queries, keys) of a slice of heads, optionally of some queries."""
        raise NotImplementedError

    def derivative(self, gradient: Tensor, heads: slice, rows: slice | Tensor = slice(None)) -> Tensor:
        """The derivative of the score with respect to those weights, given its ``gradient`` at the :attr:`edge`."""
        raise NotImplementedError

    def note_tokens(self, x: Tensor) -> None:
        """Note a tensor computed after the attention that may hold its queries; a later one replaces it."""
        images, _, queries, _ = self.shape
        if x.ndim == 3 and x.requires_grad and x.shape[:2] == (images, queries) != (queries, images):
            self.behind = get_gradient_edge(x)

    def note_block(self, module: Module, name: str, output: object, watch: Watching, copies: bool) -> None:
        """Note what an enclosing module returned, if these are the attention's tokens; a larger module replaces it."""
        images, _, queries, _ = self.shape
        x = next((x for x in tree_leaves(output) if isinstance(x, Tensor) and x.is_floating_point()), None)
        if x is None or x.ndim != 3 or not x.requires_grad:
            return
        tokens = watch.batch_first(x)
        if tokens.shape[:2] == (images, queries):
            kept = tokens.detach().clone() if copies else tokens.detach()
            self.block = Block(module, name, kept, get_gradient_edge(x), version_of(kept), tokens is not x)

    def by_query(self, gradient: Tensor) -> Tensor:
        """A gradient at the :attr:`edge`, as (N, heads, queries, ...)."""
        return by_head(gradient, self.shape[0])


class Block(NamedTuple):
    """The largest module around an attention that contains no other: its output, and the edge where gradients enter."""

    module: Module
    name: str
    tokens: Tensor
    edge: GradientEdge
    version: int
    turned: bool  # does the module return them as (L, N, C)?

    def check_unchanged(self) -> None:
        """Raise ``RuntimeError``, as autograd does, if the model has since overwritten the tokens."""
        if version_of(self.tokens) != self.version:
            raise overwritten()


def overwritten() -> RuntimeError:
    """The error in autograd's words: on it, the model runs again and everything kept is copied."""
    return RuntimeError("what an attention needs has been modified by an inplace operation")


@dataclass(eq=False, kw_only=True)
class FusedAttention(Attention):
    """An attention computed by one kernel: softmax(q kᵀ · scale + mask) v."""

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    scale: float
    causal: bool

    def weights(self, heads: slice, rows: slice | Tensor = slice(None)) -> Tensor:
        query = _precise(self.query[:, heads][:, :, rows]) * self.scale
        logits = query @ _precise(self._shared(self.key, heads)).mT
        kept = None if self.mask is None else self.mask.expand(self.shape)[:, heads][:, :, rows]
        if self.causal:
            ones = torch.ones(self.shape[2:], dtype=torch.bool, device=logits.device)
            kept = ones.tril()[rows]
        if kept is not None:
            logits = logits.masked_fill(~kept, -math.inf) if kept.dtype == torch.bool else logits + kept
        weights = logits.softmax(-1)
        return weights if kept is None else weights.nan_to_num(0.0)  # a query whose keys are all masked attends to none

    def derivative(self, gradient: Tensor, heads: slice, rows: slice | Tensor = slice(None)) -> Tensor:
        sent = self.by_query(gradient)[:, heads][:, :, rows]
        return _precise(sent) @ _precise(self._shared(self.value, heads)).mT

    def _shared(self, x: Tensor, heads: slice) -> Tensor:
        """The keys or values of some heads; a group of heads may have them in common."""
        group = self.shape[1] // x.shape[1]
        return x[:, heads] if group == 1 else x[:, torch.arange(self.shape[1], device=x.device)[heads] // group]


@dataclass(eq=False, kw_only=True)
class SpelledAttention(Attention):
    """An attention spelled out in single operations: ``matrix`` multiplies the values, with its axes in ``order``."""

    matrix: Tensor
    order: tuple[int, ...]

    def weights(self, heads: slice, rows: slice | Tensor = slice(None)) -> Tensor:
        return _precise(self.by_query(self.matrix)[:, heads][:, :, rows])

    def derivative(self, gradient: Tensor, heads: slice, rows: slice | Tensor = slice(None)) -> Tensor:
        return _precise(self.by_query(gradient)[:, heads][:, :, rows])

    def by_query(self, gradient: Tensor) -> Tensor:
        return by_head(gradient.permute(self.order), self.shape[0])


def _precise(x: Tensor) -> Tensor:
    """Convert to float32 at least: a softmax in float16 does not sum to 1."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def by_head(x: Tensor, images: int) -> Tensor:
    """View as (N, heads, tokens, channels); the heads of an image may be folded into the batch axis.

    >>> by_head(torch.zeros(6, 5, 4), images=2).shape
    torch.Size([2, 3, 5, 4])
    """
    if x.ndim < 4:
        x = x.reshape(-1, *x.shape[-2:])
        return x.unflatten(0, (images, -1)) if len(x) % images == 0 else x[:, None]
    return x.flatten(0, x.ndim - 4)


def edge_of(x: Tensor) -> GradientEdge | None:
    """The gradient edge of a tensor as it is now: it may be overwritten later."""
    return get_gradient_edge(x) if x.requires_grad else None
