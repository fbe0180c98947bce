"""Layouts: how an activation holds its grid."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import Module

Layout: TypeAlias = str | tuple[int, int] | Callable[[Tensor], Tensor] | None
MAX_EXTRA_TOKENS = 8  # a class token, a distillation token, registers


def same_aspect(grid: Sequence[int], size: Sequence[int]) -> bool:
    """Can this be a grid over an image of this size, up to the rounding of less than one cell?"""
    (h, w), (height, width) = grid, size
    fits = abs(h * width - w * height) < max(height, width)
    return fits and h <= 2 * height and w <= 2 * width


def token_grid(tokens: int, size: Sequence[int]) -> tuple[int, int] | None:
    """Rows and columns of square patches of an image of this size; extra tokens stand in front.

    Patches that fill the image come before those that leave a rest, few extra tokens before many.

    >>> token_grid(197, (224, 224)), token_grid(7, (32, 48))
    ((14, 14), (2, 3))
    """
    height, width = size
    patches = range(1, min(height, width) + 1)
    filling = {(height // patch, width // patch) for patch in patches if height % patch == width % patch == 0}
    for grids in (filling, {(height // patch, width // patch) for patch in patches}):
        fitting = [grid for grid in grids if 0 <= tokens - grid[0] * grid[1] <= MAX_EXTRA_TOKENS]
        if fitting:
            return max(fitting, key=lambda grid: grid[0] * grid[1])
    return None


def grid_of(x: Tensor, size: Sequence[int]) -> torch.Size | None:
    """The grid of an activation for an image of this size; ``None`` where it has none."""
    if x.ndim == 3 and len(size) == 2:
        grid = token_grid(x.shape[1], size)
        return None if grid is None else torch.Size(grid)
    if x.ndim != len(size) + 2 or x.ndim < 3:
        return None
    grid_first = x.shape[1:-1] if reads_channels_last(x, size) else x.shape[2:]
    return grid_first if all(side <= 2 * of for side, of in zip(grid_first, size, strict=True)) else None


def reads_channels_last(x: Tensor, size: Sequence[int]) -> bool:
    """Is (N, h, w, C) the only reading of an activation that fits an image of this size?"""
    return x.ndim == 4 and not same_aspect(x.shape[2:], size) and same_aspect(x.shape[1:3], size)


def _check_unambiguous(x: Tensor, size: Sequence[int], module: Module | None) -> None:
    both = x.ndim == 4 and same_aspect(x.shape[2:], size) and same_aspect(x.shape[1:3], size)
    kinds = (torch.nn.Linear, torch.nn.LayerNorm)  # what works on channels that stand last
    if both and x.shape[1] > 1 and module is not None and any(isinstance(part, kinds) for part in module.modules()):
        raise ValueError(
            f"layout=None is ambiguous for an activation of shape {tuple(x.shape)}; expected "
            "layout='channels_first' or 'channels_last'."
        )


def to_channels_first(x: Tensor, size: Sequence[int], layout: Layout = None, module: Module | None = None) -> Tensor:
    """View an activation as (N, C, h, w), whatever the network's own layout.

    (N, h, w, C) activations and (N, extra + h * w, C) tokens are told by the image's ``size``. ``layout`` says it
    where that fails: ``'channels_first'``, ``'channels_last'``, the tokens' (h, w), or a function of the activation.
    Raises ``ValueError`` where the shape is ambiguous or no grid.

    >>> to_channels_first(torch.zeros(1, 197, 5), (224, 224)).shape
    torch.Size([1, 5, 14, 14])
    """
    if callable(layout):
        return layout(x)
    if isinstance(layout, str):
        return x.movedim(-1, 1) if layout == "channels_last" else x
    if x.ndim == 2:
        return x[..., None, None]
    if x.ndim == len(size) + 2 and layout is None:
        _check_unambiguous(x, size, module)
        return x.movedim(-1, 1) if reads_channels_last(x, size) else x
    grid = layout or (token_grid(x.shape[1], size) if x.ndim == 3 and len(size) == 2 else None)
    if grid is None or x.ndim != 3 or x.shape[1] < grid[0] * grid[1]:
        raise ValueError(
            f"layout={layout!r} gives an activation of shape {tuple(x.shape)} no grid; expected layout=(height, "
            "width) for "
            "tokens, 'channels_first', 'channels_last', or a function that returns (N, C, h, w)."
        )
    patches = x[:, x.shape[1] - grid[0] * grid[1] :]
    return patches.reshape(len(x), *grid, -1).movedim(-1, 1)
