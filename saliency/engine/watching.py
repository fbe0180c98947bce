"""Watching: the grids that a forward pass shows, in operations that create, flatten, restore and extend them."""

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import (
    BatchNorm2d,
    BatchNorm3d,
    Conv2d,
    Conv3d,
    ConvTranspose2d,
    ConvTranspose3d,
    LayerNorm,
    Linear,
    Module,
    ReLU,
    Sequential,
)

from saliency.engine.nesting import OwnMode

_PER_DIMENSION = ("conv", "conv_transpose", "max_pool", "avg_pool", "adaptive_max_pool", "adaptive_avg_pool", "lp_pool")
# Operations that return (N, C, *grid), by the names that torch, its functional interface and aten have in common.
_MAKE = frozenset(
    [f"{name}{d}d" for name in _PER_DIMENSION for d in (1, 2, 3)]
    + ["convolution", "interpolate", "pixel_shuffle", "pixel_unshuffle", "fold"]
)
_CONVOLUTIONAL = (Conv2d, Conv3d, ConvTranspose2d, ConvTranspose3d, BatchNorm2d, BatchNorm3d)
_RESHAPE = frozenset(["view", "_unsafe_view", "reshape", "flatten", "unflatten"])
_JOIN = frozenset(["cat", "concat", "concatenate"])
_TURN = frozenset(["permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis"])
_NOTED = frozenset(["unfold"]) | _MAKE | _RESHAPE | _JOIN | _TURN


class Grid(NamedTuple):
    """A grid that was seen in tensors with this many rows, and where its cells start among the tokens."""

    rows: int
    sides: tuple[int, ...]
    tokens: int
    start: int = 0

    @property
    def is_alone(self) -> bool:
        """Are there no tokens besides those of the cells?"""
        return self.tokens == prod(self.sides)


class Watching(OwnMode):
    """Note the grids of a forward pass, the newest last. Changes nothing.

    A patch convolution to (N, C, 2, 3) shows a grid of 2 x 3; a class token before its 6 cells gives 7 tokens, start 1:

    >>> with Watching() as watch:
    ...     patches = torch.nn.functional.conv2d(torch.rand(1, 3, 8, 12), torch.rand(5, 3, 4, 4), stride=4)
    ...     tokens = torch.cat([torch.rand(1, 1, 5), patches.flatten(2).mT], 1)
    >>> watch.seen[-1]
    Grid(rows=1, sides=(2, 3), tokens=7, start=1)
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Grid] = []
        self._turned: set[tuple[int, int]] = set()  # tokens and rows where the tokens lead

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "").partition(".")[0]
        if name in _NOTED and isinstance(result, Tensor):
            with torch._C.DisableTorchFunction():  # reading a shape is not an operation of the model
                if result.ndim > 2 and result.layout is torch.strided and not result.is_nested:
                    self._note(name, result, args, kwargs or {})
        return result

    def batch_first(self, x: Tensor) -> Tensor:
        """The activation with the batch as its first axis: tokens (L, N, C) become (N, L, C).

        With as many images as tokens the batch is taken to be first, as it is in most networks.

        >>> with Watching() as watch:
        ...     tokens = torch.conv2d(torch.rand(2, 3, 8, 12), torch.rand(5, 3, 4, 4), stride=4).flatten(2)
        ...     turned = tokens.permute(2, 0, 1)
        >>> turned.shape, watch.batch_first(turned).shape
        (torch.Size([6, 2, 5]), torch.Size([2, 6, 5]))
        """
        return x.transpose(0, 1) if x.ndim == 3 and tuple(x.shape[:2]) in self._turned else x

    def of(self, x: Tensor) -> list[Grid]:
        """The grids seen so far in tensors with as many rows as this one."""
        return [grid for grid in self.seen if x.shape[:1] == (grid.rows,)]

    def _note(self, name: str, result: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if name in _JOIN:
            self._join(args[0] if args else kwargs.get("tensors", ()), result)
            return
        x = args[0] if args else kwargs.get("input")
        if not isinstance(x, Tensor):
            return
        if name in _TURN:
            self._turn(x, result)
        elif name in _RESHAPE:
            self._reshape(tuple(x.shape), tuple(result.shape))
        elif name in _MAKE:
            self._add(len(result), tuple(result.shape[2:]))
        elif x.ndim < result.ndim and result.ndim % 2 == 0:  # Tensor.unfold along all axes: (N, C, h, w, p, p)
            self._add(len(result), tuple(result.shape[2 : result.ndim // 2 + 1]))
        elif x.ndim > result.ndim:
            options = {name: value for name, value in kwargs.items() if name != "input"}
            self._add(len(result), _unfolded(x.shape[2:], *args[1:], **options))

    def _reshape(self, before: tuple[int, ...], after: tuple[int, ...]) -> None:
        """Tokens (N, L, C) reshaped to a grid (N, h, w, C), or the reverse."""
        cells, flat = sorted([before, after], key=len, reverse=True)
        if len(flat) != 3 or (cells[0] == flat[0] and self._of_tokens(flat[0], flat[2]) is not None):
            return  # channels first: the channels are split into heads
        if before[0] > after[0] and before[-1] == after[-1] and after == flat:
            # Windows (N * m, h, w, C) become tokens in another order: what was seen of these tokens no longer holds.
            self.seen = [grid for grid in self.seen if (grid.rows, grid.tokens) != after[:2]]
            self._split(after[0], before[1:-1])
        elif cells[0] == flat[0]:
            for sides in (cells[1:3], cells[1:4]):
                if len(sides) + 1 < len(cells) and prod(sides) == flat[1]:
                    self._split(flat[0], sides)

    def _turn(self, x: Tensor, result: Tensor) -> None:
        """Tokens (N, L, C), or a flattened grid (N, C, L), turned to (L, N, C)."""
        of_batch = x.ndim == result.ndim == 3 and result.shape[1] == len(x) and result.stride(1) == x.stride(0)
        if of_batch and self._of_tokens(len(x), len(result)):
            self._lead(len(result), len(x))

    def _lead(self, tokens: int, rows: int) -> None:
        """From here on these tokens stand before the batch, unless equal numbers leave that open."""
        if tokens != rows:
            self._turned.add((tokens, rows))

    def _split(self, rows: int, sides: tuple[int, ...]) -> None:
        """A split of the tokens that may be one into heads: it is a grid only if that grid is known, merged."""
        known = [grid.sides for grid in self.seen if grid.rows == rows and len(grid.sides) == len(sides)]
        fits = not known or any(is_merged(sides, of) or sorted(sides) == sorted(of) for of in known)
        if fits and len(sides) > 1 and min(sides) > 1:
            # A side may be a flattened grid itself, as of the patches of a frame.
            lines = {grid.tokens: grid.sides for grid in self.seen if grid.is_alone}
            self._add(rows, tuple(of for side in sides for of in lines.get(side, (side,))), split=True)

    def _join(self, tensors: Sequence[Tensor], result: Tensor) -> None:
        """Extra tokens concatenated before those of a grid, or after them."""
        if result.ndim != 3 or not all(isinstance(x, Tensor) and x.ndim == 3 for x in tensors):
            return
        if any(tuple(x.shape[:2]) in self._turned for x in tensors):
            tensors, result = [x.transpose(0, 1) for x in tensors], result.transpose(0, 1)
            self._lead(result.shape[1], len(result))
        counts = [x.shape[1] for x in tensors]
        found = [(at, grid) for at, count in enumerate(counts) if (grid := self._of_tokens(len(result), count))]
        if len(found) == 1 and sum(counts) == result.shape[1]:
            at, grid = found[0]
            self._append(grid._replace(tokens=result.shape[1], start=sum(counts[:at]) + grid.start))

    def _add(self, rows: int, sides: tuple[int, ...], split: bool = False) -> None:
        """Add a grid, unless its cells are those of a known one in one line, or split in another way."""
        cells = prod(sides)
        same = self._of_tokens(rows, cells) if split or len(sides) == 1 else None
        if cells > 1 and (same is None or sorted(same.sides) == sorted(sides)):
            self._append(Grid(rows, sides, cells))

    def _append(self, grid: Grid) -> None:
        if grid in self.seen:
            self.seen.remove(grid)
        self.seen.append(grid)

    def _of_tokens(self, rows: int, tokens: int) -> Grid | None:
        return next((grid for grid in reversed(self.seen) if grid.rows == rows and grid.tokens == tokens), None)


def _unfolded(
    size: Sequence[int],
    kernel_size: int | Sequence[int],
    dilation: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    stride: int | Sequence[int] = 1,
) -> tuple[int, ...]:
    """The grid of the patches that ``F.unfold`` extracts."""
    each = ([of] * len(size) if isinstance(of, int) else of for of in (kernel_size, dilation, padding, stride))
    return tuple((side + 2 * p - d * (k - 1) - 1) // s + 1 for side, k, d, p, s in zip(size, *each, strict=True))


def is_merged(grid: Sequence[int], seen: Sequence[int]) -> bool:
    """Is each cell of a grid a patch of cells of one that was seen, along all of its axes or some?"""
    patches = range(1, max(seen) + 1)
    return len(grid) == len(seen) and any(
        all(side in (of, of // p, -(-of // p)) for side, of in zip(grid, seen, strict=True)) for p in patches
    )


def is_convolutional(module: Module) -> bool:
    """Does a layer of this type always return (N, C, h, w) or (N, C, d, h, w)? Then nothing needs to be watched.

    A module with its own forward pass may return anything: it may end with ``flatten(2).mT``.
    """
    if isinstance(module, _CONVOLUTIONAL):
        return True
    parts = list(module) if type(module) is Sequential else []
    normalised = any(isinstance(part, (BatchNorm2d, BatchNorm3d)) for part in parts)
    return normalised and all(isinstance(part, (*_CONVOLUTIONAL, ReLU)) for part in parts)


def shows_own_grid(module: Module) -> bool:
    """Does a layer contain modules that accept only (N, C, h, w)? Then it changes its grid only inside itself."""
    parts = list(module.modules())
    normalised = any(isinstance(part, (BatchNorm2d, BatchNorm3d)) for part in parts)
    return normalised and not any(isinstance(part, (LayerNorm, Linear)) for part in parts)
