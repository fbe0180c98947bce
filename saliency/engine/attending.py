"""Attending: find the attentions of a forward pass, fused or spelled out, while it runs.

One that is spelled out is followed: ``logits = q @ k.mT`` is remembered with its factors q and k, ``a =
logits.softmax(-1)`` as a softmax, and ``a @ v`` is then an attention with queries q, keys k and values v.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.jit import ScriptModule
from torch.nn import Module

from saliency.engine.attention import Attention, FusedAttention, SpelledAttention, by_head, edge_of, overwritten
from saliency.engine.graph import node_of
from saliency.engine.kinds import ATTENTION, MATRIX_PRODUCTS, SOFTMAX
from saliency.engine.nesting import OwnMode
from saliency.engine.opening import COMPOSITE, opened, seen_by
from saliency.engine.operations import Function, with_exported
from saliency.engine.probe import add_hook
from saliency.engine.watching import Watching

Args: TypeAlias = tuple[Any, ...]  # of a torch function
Kwargs: TypeAlias = Mapping[str, Any]

_FUSED = frozenset(ATTENTION)
_SOFTMAX = frozenset(SOFTMAX)
_EINSUM = frozenset(with_exported(torch.einsum))
_PRODUCTS = _EINSUM | frozenset(MATRIX_PRODUCTS)
# What may happen to logits before the softmax, and to the matrix after it: new axes, or new numbers.
_RESHAPING = frozenset(
    with_exported(
        *(Tensor.view, Tensor.reshape, torch.reshape, Tensor.flatten, torch.flatten, Tensor.unflatten),
        *(Tensor.transpose, torch.transpose, Tensor.permute, torch.permute, Tensor.squeeze, Tensor.unsqueeze),
        *(Tensor.swapaxes, Tensor.movedim, F.linear, F.conv2d),  # talking heads
    )
)
_ELEMENTWISE = frozenset(
    with_exported(
        *(F.dropout, torch.dropout, Tensor.to, Tensor.type_as, Tensor.float, Tensor.half, Tensor.bfloat16),
        *(Tensor.contiguous, Tensor.clone, Tensor.masked_fill, Tensor.masked_fill_, torch.where),
        *(torch.mul, Tensor.mul, Tensor.mul_, Tensor.__mul__, Tensor.__rmul__, Tensor.__imul__),
        *(torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__radd__, Tensor.__iadd__),
        *(torch.div, Tensor.div, Tensor.div_, Tensor.__truediv__, Tensor.__itruediv__, Tensor.__sub__),
    )
)
_ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
_KEPT = 8  # matrices followed at once: more than are alive between two products


class _Factor(NamedTuple):
    """One factor of a matrix product; ``order`` lists its axes: those of both factors, its own, the one summed over."""

    tensor: Tensor
    order: tuple[int, ...]

    @property
    def aligned(self) -> Tensor:
        """The tensor with its axes in that order."""
        return self.tensor.permute(self.order)


class _Followed(NamedTuple):
    """A matrix on its way to a softmax, or from there to the values, and the factors it was computed from, if known."""

    tensor: Tensor  # kept alive, so that its id stays unique
    factors: tuple[_Factor, ...] = ()
    is_softmax: bool = False


class Attending(OwnMode):
    """Note the attentions of a forward pass over N images in order, and its grids in :attr:`watch`.

    With ``copies``, everything kept is cloned, because the model overwrites some of it later.

    >>> q, k, v = torch.rand(3, 1, 2, 5, 4).unbind()
    >>> with Attending(1) as attending:
    ...     result = F.scaled_dot_product_attention(q, k, v)
    >>> attention = attending.found[0]
    >>> attention.shape, torch.allclose(attention.weights(slice(None)) @ v, result)
    ((1, 2, 5, 5), True)
    """

    def __init__(self, images: int, copies: bool = False) -> None:
        super().__init__()
        self.found: list[Attention] = []
        self.watch = Watching()
        self._images = images
        self._copies = copies
        self._followed: dict[int, _Followed] = {}
        self._saved: list[list[Tensor]] = []  # by autograd, since the last attention
        self._keeps_blocks = True
        # The modules that are running, each with its name and the number of attentions found before it.
        self._around: list[tuple[str, Module | None, int]] = [("", None, 0)]

    def __torch_function__(
        self, func: Function, types: object, args: Args = (), kwargs: Kwargs | None = None
    ) -> object:
        kwargs = kwargs or {}
        if func in COMPOSITE:
            with seen_by(self):
                return opened(func)(*args, **kwargs)
        result = func(*args, **kwargs)
        if isinstance(result, Tensor):
            with torch._C.DisableTorchFunction():  # reading a shape is not an operation of the model
                if not result.is_nested:
                    self._note(func, result, args, kwargs)
        return result

    def _note(self, function: Function, result: Tensor, args: Args, kwargs: Kwargs) -> None:
        if function in _FUSED:
            self._add_fused(result, {**dict(zip(_ARGUMENTS, args, strict=False)), **kwargs})
        elif function in _PRODUCTS:
            self._multiply(function, result, args, kwargs)
        elif self._followed or function in _SOFTMAX:
            self._follow(function, result, args, kwargs)
        if self.found and result.ndim == 3:
            self.found[-1].note_tokens(result)

    def _follow(self, function: Function, result: Tensor, args: Args, kwargs: Kwargs) -> None:
        """Keep track of a matrix through an operation that is not a matrix product."""
        x = next((x for x in (*args[:3], kwargs.get("input")) if id(x) in self._followed), None)
        known = self._followed[id(x)] if isinstance(x, Tensor) else _Followed(result)
        if function in _SOFTMAX:
            axis = args[1] if len(args) > 1 else kwargs.get("dim")
            if axis in (-1, result.ndim - 1) and result.ndim > 2:
                self._keep(known._replace(tensor=result, is_softmax=True))
        elif isinstance(x, Tensor) and (
            function in _RESHAPING or (function in _ELEMENTWISE and result.shape == x.shape)
        ):
            self._keep(known._replace(tensor=result))

    def _keep(self, followed: _Followed) -> None:
        self._followed[id(followed.tensor)] = followed
        if len(self._followed) > _KEPT:
            del self._followed[next(iter(self._followed))]

    def _multiply(self, function: Function, result: Tensor, args: Args, kwargs: Kwargs) -> None:
        """Handle a matrix product: either logits, or an attention applied to its values."""
        factors = _factors(function, args, kwargs)
        if factors is None:
            return
        left, right = factors
        matrix, other = (right, left) if self._weighs(right.tensor) else (left, right)
        if self._weighs(matrix.tensor):
            self._add_spelled(result, matrix, other)
        else:
            self._keep(_Followed(result, factors))

    def _weighs(self, x: Tensor) -> bool:
        followed = self._followed.get(id(x))
        return followed is not None and followed.is_softmax

    def _add_fused(self, result: Tensor, given: Kwargs) -> None:
        q, k, v, mask = given["query"], given["key"], given["value"], given.get("attn_mask")
        query, key, value = (by_head(self._own(x), self._images) for x in (q, k, v))
        if mask is not None and q.ndim == 3 and mask.ndim == 3:
            mask = by_head(mask, self._images) if len(mask) == len(q) else mask[None]
        scale = given.get("scale")
        self._add(
            FusedAttention(
                shape=(len(query), query.shape[1], query.shape[2], key.shape[2]),
                in_parts=q.ndim > 4,
                edge=edge_of(result),
                output=edge_of(result),
                reads=(node_of(q), node_of(k)),
                values=node_of(v),
                query=query,
                key=key,
                value=value,
                mask=None if mask is None or q.ndim > 4 else mask.detach(),
                scale=query.shape[-1] ** -0.5 if scale is None else float(scale),
                causal=bool(given.get("is_causal", False)),
                seen=self.watch.of(query),
                layer=self._around[-1][0],
                module=self._around[-1][1],
            )
        )

    def _add_spelled(self, result: Tensor, matrix: "_Factor", value: "_Factor") -> None:
        followed = self._followed[id(matrix.tensor)]
        self._followed.clear()  # everything followed so far led to this attention
        own = self._own(matrix.tensor)
        weights = by_head(own.permute(matrix.order), self._images)
        query, key = [by_head(self._own(x.aligned), self._images) for x in followed.factors] or (None, None)
        self._add(
            SpelledAttention(
                shape=(len(weights), weights.shape[1], weights.shape[2], weights.shape[3]),
                in_parts=matrix.tensor.ndim > 4,
                edge=edge_of(matrix.tensor),
                output=edge_of(result),
                reads=tuple(node_of(x.tensor) for x in followed.factors or (matrix,)),
                values=node_of(value.tensor),
                query=query,
                key=key,
                value=by_head(self._own(value.aligned.mT), self._images),
                matrix=own,
                order=matrix.order,
                seen=self.watch.of(weights),
                layer=self._around[-1][0],
                module=self._around[-1][1],
            )
        )

    def _own(self, x: Tensor) -> Tensor:
        """The tensor to keep: a copy where the model is known to overwrite it."""
        return x.detach().clone() if self._copies else x.detach()

    def _add(self, attention: Attention) -> None:
        self.found.append(attention)
        for saved in self._saved:
            saved.clear()
        self._saved.clear()

    def forgetting(self) -> AbstractContextManager[None]:
        """Keep for the backward pass only what comes after the last attention, no block; needing more is an error."""
        self._keeps_blocks = False
        every = self._saved  # the graph keeps the functions: one that referred to the graph would never be freed

        def save(x: Tensor) -> list[Tensor]:
            with torch._C.DisableTorchFunction():
                every.append([x.detach()])
            return every[-1]

        def load(saved: list[Tensor]) -> Tensor:
            if not saved:
                raise overwritten()
            return saved[0]

        return saved_tensors_hooks(save, load)

    @contextmanager
    def around(self, model: Module) -> Iterator[None]:
        """Note which modules contain each attention, and the output of the largest one that contains no other."""

        def enter(name: str, module: Module, *given: object) -> None:
            self._around.append((name, module, len(self.found)))

        def leave(module: Module, args: object, output: object) -> None:
            name, _, before = self._around.pop()
            if self._keeps_blocks and len(self.found) == before + 1:
                with torch._C.DisableTorchFunction():
                    self.found[before].note_block(module, name, output, self.watch, self._copies)

        with ExitStack() as stack:
            for name, module in model.named_modules():
                if isinstance(module, ScriptModule) or _is_elementary(module):
                    continue
                stack.callback(add_hook(module.register_forward_pre_hook, partial(enter, name, module)).remove)
                stack.callback(add_hook(module.register_forward_hook, leave).remove)
            yield


def _is_elementary(module: Module) -> bool:
    """Is this a built-in layer without submodules? None of these attends, and they are many."""
    return not module._modules and type(module).__module__.startswith("torch.nn.modules.")


def _factors(function: Function, args: Args, kwargs: Kwargs) -> tuple[_Factor, _Factor] | None:
    """The two factors of a matrix product; ``None`` if this is another kind of product."""
    if function in _EINSUM:
        equation, *given = args
        operands = given[0] if given and isinstance(given[0], (list, tuple)) else given
        return _summed(equation, operands) if isinstance(equation, str) and len(operands) == 2 else None
    tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)][-2:]
    if len(tensors) < 2 or min(x.ndim for x in tensors) < 3:
        return None
    left, right = tensors
    *batch, own, summed = range(right.ndim)
    return _Factor(left, tuple(range(left.ndim))), _Factor(right, (*batch, summed, own))


def _summed(equation: str, operands: Sequence[Tensor]) -> tuple[_Factor, _Factor] | None:
    """The factors of an einsum that is a matrix product; ``None`` for any other.

    >>> [factor.order for factor in _summed("bhij,bjhd->bihd", [torch.zeros(1, 2, 3, 4), torch.zeros(1, 4, 2, 5)])]
    [(0, 1, 2, 3), (0, 2, 3, 1)]
    """
    terms, arrow, output = equation.replace(" ", "").partition("->")
    letters = terms.split(",")
    if not arrow or "." in equation or len(letters) != 2:
        return None
    both = [letter for letter in letters[0] if letter in letters[1]]
    batch, summed = [letter for letter in both if letter in output], [letter for letter in both if letter not in output]
    factors = []
    for own, x in zip(letters, operands, strict=True):
        alone = [letter for letter in own if letter not in both]
        if len(alone) != 1 or len(summed) != 1:
            return None
        factors.append(_Factor(x, tuple(own.index(letter) for letter in (*batch, *alone, *summed))))
    return factors[0], factors[1]
