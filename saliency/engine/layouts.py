"""Layouts: where an activation has its grid."""

from collections.abc import Callable, Iterable, Sequence
from math import prod
from typing import NamedTuple, TypeAlias

from torch import Tensor
from torch.nn import LayerNorm, Linear, Module

from saliency.engine.checks import shown
from saliency.engine.watching import Grid, is_convolutional, is_merged

Layout: TypeAlias = str | tuple[int, ...] | Callable[[Tensor], Tensor] | None
FEW_TOKENS = 8  # a class token, a distillation token, registers
_MOST_TOKENS = 64  # before a grid that was seen


class Reading(NamedTuple):
    """Where the grid of an activation is: channels ``'first'`` or ``'last'``, and the sides of the grid.

    Cells in a single axis with the channels last are tokens; the grid begins at token number ``start``.
    """

    channels: str
    sides: tuple[int, ...]
    start: int = 0

    def apply(self, x: Tensor) -> Tensor:
        """View the activation as (N, C, *grid)."""
        if self.channels == "first":
            return x if x.ndim == len(self.sides) + 2 else x.unflatten(2, self.sides)
        if x.ndim > 3:
            return x.movedim(-1, 1)
        cells = x[:, self.start : self.start + prod(self.sides)]
        return cells.reshape(len(x), *self.sides, -1).movedim(-1, 1)


def same_aspect(grid: Sequence[int], size: Sequence[int]) -> bool:
    """Can this be a grid over an image of this size, up to rounding by less than one cell?

    A clip or a volume may be sampled differently along each axis: its grid only has to be no larger than it.
    """
    if len(grid) != 2 or len(size) != 2:
        return len(grid) == len(size) and all(side <= of for side, of in zip(grid, size, strict=True))
    (h, w), (height, width) = grid, size
    fits = abs(h * width - w * height) < max(height, width)
    return fits and h <= 2 * height and w <= 2 * width


def _token_grids(tokens: int, size: Sequence[int]) -> list[tuple[int, int]]:
    """The grids of square patches that this many tokens can form, the best first; see :func:`token_grid`."""
    height, width = size
    patches = range(1, min(height, width) + 1)
    filling = {(height // patch, width // patch) for patch in patches if height % patch == width % patch == 0}
    every = filling | {(height // patch, width // patch) for patch in patches}
    fitting = [grid for grid in every if 0 <= tokens - prod(grid) <= FEW_TOKENS]
    return sorted(fitting, key=lambda grid: (grid in filling, prod(grid)), reverse=True)


def token_grid(tokens: int, size: Sequence[int]) -> tuple[int, int] | None:
    """The (height, width) in patches of an image of this size, for square patches; extra tokens come first.

    Patches that tile the image are preferred to those that leave a remainder, and few extra tokens to many.

    >>> token_grid(197, (224, 224)), token_grid(7, (32, 48))
    ((14, 14), (2, 3))
    """
    return next(iter(_token_grids(tokens, size)), None)


def read(
    shape: Sequence[int], size: Sequence[int], module: Module | None = None, seen: Sequence[Grid] | None = None
) -> Reading | None:
    """Find the grid of an activation: one ``seen`` in the pass, or else one that fits the image's size.

    ``seen=None`` says that the pass was not watched and that the best guess will do. Returns ``None`` if there is no
    grid; raises ``ValueError`` if there may be two.
    """
    if len(shape) > 3:
        return _read_cells(shape, size, module, [grid.sides for grid in seen or ()])
    if len(shape) < 3:
        return None
    reading = _read_seen(shape, seen or (), module)
    if reading is None and len(size) == 1:
        if seen is not None and _works_on_last(module):
            raise _ambiguous(shape, "'channels_first' or 'channels_last'")
        return Reading("first", tuple(shape[2:]))
    return _guess(shape, size, seen is not None) if reading is None and len(size) == 2 and not seen else reading


def _read_cells(
    shape: Sequence[int], size: Sequence[int], module: Module | None, seen: Sequence[tuple[int, ...]]
) -> Reading | None:
    """(N, C, h, w) or (N, h, w, C)."""
    first, last = tuple(shape[2:]), tuple(shape[1:-1])
    if module is not None and is_convolutional(module):
        return Reading("first", first)

    def merged(grid: tuple[int, ...]) -> bool:
        return any(is_merged(grid, of) for of in seen)

    for fits in (seen.__contains__, merged, lambda grid: same_aspect(grid, size)):
        if fits(first) and fits(last):
            if shape[1] > 1 and _works_on_last(module):
                raise _ambiguous(shape, "'channels_first' or 'channels_last'")
            return Reading("first", first)
        if fits(first) or fits(last):
            return Reading("first", first) if fits(first) else Reading("last", last)
    return Reading("first", first) if len(first) == len(size) else None


def _read_seen(shape: Sequence[int], seen: Sequence[Grid], module: Module | None) -> Reading | None:
    """Tokens (N, k + L, C) or (N, C, L) whose cells are those of a grid that was seen, the most recent first."""
    count, last = shape[1:]
    newest = seen[::-1]
    tokens = [grid for grid in newest if grid.tokens == count]
    flat = [grid for grid in newest if grid.tokens == last and grid.is_alone]
    extra = [(count - grid.tokens, grid) for grid in newest if grid.is_alone]
    extra = [(k, grid) for k, grid in extra if 0 < k <= min(_MOST_TOKENS, grid.tokens)]
    normalised = (part.normalized_shape for part in _parts(module) if isinstance(part, LayerNorm))
    if (shape[2],) in normalised:
        flat = []  # the normalised axis holds a token's features
    twice = bool(flat) and bool(tokens or any(k <= FEW_TOKENS for k, _ in extra))
    if twice and (len(flat[0].sides) > 1 or _works_on_last(module)):
        raise _tokens_or_flat(shape, flat[0].sides)
    if tokens and not flat:
        return Reading("last", tokens[0].sides, tokens[0].start)
    if flat:
        return Reading("first", flat[0].sides)
    if len({grid.sides for _, grid in extra}) > 1:
        raise _ambiguous(shape, " or ".join(str(grid.sides) for _, grid in extra))
    return Reading("last", extra[0][1].sides, extra[0][0]) if extra else None


def _guess(shape: Sequence[int], size: Sequence[int], strict: bool) -> Reading | None:
    """A grid of square patches."""
    fitting = _token_grids(shape[1], size)
    flat = [grid for grid in _token_grids(shape[2], size) if prod(grid) == shape[2]]
    if strict and len(fitting) + len(flat) > 1:
        raise _tokens_or_flat(shape, (fitting or flat)[0])
    if fitting:
        return Reading("last", fitting[0], shape[1] - prod(fitting[0]))
    return Reading("first", flat[0]) if strict and flat else None


def _read_named(shape: Sequence[int], sides: tuple[int, ...], seen: Sequence[Grid]) -> Reading | None:
    """Tokens of the grid that the user gave; in a flattened map the cells are the last axis."""
    if len(shape) != 3:
        return None
    count, last, cells = *shape[1:], prod(sides)
    known = [grid.start for grid in reversed(seen) if grid.sides == sides and grid.tokens == count]
    if last == cells and not (known or 0 <= count - cells <= FEW_TOKENS):
        return Reading("first", sides)
    return Reading("last", sides, known[0] if known else count - cells) if count >= cells else None


def _works_on_last(module: Module | None) -> bool:
    """Does a layer contain modules that work on channels in the last axis?"""
    return any(isinstance(part, (Linear, LayerNorm)) for part in _parts(module))


def _parts(module: Module | None) -> Iterable[Module]:
    return () if module is None else module.modules()


def _ambiguous(shape: Sequence[int], layouts: str) -> ValueError:
    return ValueError(f"layout=None is ambiguous for an activation of shape {tuple(shape)}; expected layout={layouts}.")


def _tokens_or_flat(shape: Sequence[int], sides: tuple[int, ...]) -> ValueError:
    return _ambiguous(shape, f"{sides} for tokens, or lambda x: x.unflatten(2, {sides}) for a flattened grid")


def to_channels_first(
    x: Tensor,
    size: Sequence[int],
    layout: Layout = None,
    module: Module | None = None,
    seen: Sequence[Grid] | None = None,
) -> Tensor:
    """View an activation as (N, C, h, w), whatever the network's own layout; likewise in one and three dimensions.

    Activations (N, h, w, C) and tokens (N, k + h * w, C) are recognised by the grids ``seen`` in the pass, or else by
    the image's ``size``. ``layout`` decides where that fails: ``'channels_first'``, ``'channels_last'``, the tokens'
    (h, w), (l,) or (d, h, w), or a function of the activation. Raises ``ValueError`` if the shape is ambiguous or not a
    grid.

    >>> import torch
    >>> to_channels_first(torch.zeros(1, 197, 5), (224, 224)).shape
    torch.Size([1, 5, 14, 14])
    """
    if callable(layout):
        grid = layout(x)
        if not isinstance(grid, Tensor):
            raise ValueError(f"layout={shown(layout)} returned a {type(grid).__name__}; expected (N, C, h, w).")
        return grid
    if isinstance(layout, str):
        return x.movedim(-1, 1) if layout == "channels_last" else x
    if x.ndim == 2:
        return x[..., None, None]
    reading = read(x.shape, size, module, seen) if layout is None else _read_named(x.shape, layout, seen or ())
    if reading is None:
        raise ValueError(
            f"layout={layout!r} does not describe a grid for an activation of shape {tuple(x.shape)}; expected "
            "(height, width) for tokens, 'channels_first', 'channels_last', or a function that returns (N, C, h, w)."
        )
    return reading.apply(x)
