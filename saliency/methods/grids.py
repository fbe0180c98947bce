"""Grids: a layer's activation as (N, C, h, w), whatever the layer's own layout, for methods that search for masks."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import Module

from saliency.engine.call import Call
from saliency.engine.checks import describe, shown
from saliency.engine.layouts import Layout, to_channels_first
from saliency.engine.outputs import Output
from saliency.engine.site import Site
from saliency.engine.state import on_device, rows_at
from saliency.engine.variants import Run, replacing_layer
from saliency.engine.watching import Grid


def replacing_grid(
    call: Call, site: Site, size: Sequence[int], layout: Layout, record_all: bool = False, copies: bool = False
) -> tuple[Tensor, Run]:
    """A layer's activation as grids (N, C, h, w), and a function that runs the network on other grids in its place.

    ``size`` is that of the images, from which the grid is inferred. Other options: see :class:`Tail`.
    """
    if not 1 <= len(size) <= 3:
        raise ValueError(f"input={describe(call.image)} has no grid of one to three axes; expected (N, C, H, W).")
    x, run = replacing_layer(call, site, record_all, copies=copies)
    index = grid_index(x[:1], size, layout, site.module, site.seen or ())
    if index.shape == x.shape[1:] and bool((index.flatten().diff() == 1).all()):
        return x, run
    there = on_device(index, x.device)

    def run_grids(grids: Tensor, rows: Tensor) -> Iterator[tuple[Tensor, Output]]:
        return run(put_grid(rows_at(x, rows), there, grids), rows)

    return x.flatten(1)[:, there], run_grids


def grid_index(
    x: Tensor, size: Sequence[int], layout: Layout, module: Module | None, seen: Sequence[Grid] | None = None
) -> Tensor:
    """The flat index of the entry of an activation (1, ...) at each point of its grid: LongTensor (C, h, w) on the CPU.

    Raises ``ValueError`` where the activation has no grid, or where a ``layout`` function does more than rearrange
    it.
    """
    numbers = torch.arange(x.numel(), device="cpu").view(x.shape)
    index = to_channels_first(numbers, size, layout, module, seen)
    if not isinstance(index, Tensor) or index.ndim not in (4, len(size) + 2) or len(index) != 1:
        raise ValueError(
            f"layout={shown(layout)} makes no grid (1, C, h, w) of an activation {tuple(x.shape)}; expected a layout "
            "that makes one."
        )
    if index.is_floating_point() or index.unique().numel() < index.numel() or int(index.max()) >= x.numel():
        raise ValueError(
            f"layout={shown(layout)} changes an activation's values; expected a function that rearranges it."
        )
    return index[0]


def put_grid(x: Tensor, index: Tensor, grids: Tensor) -> Tensor:
    """Activations (B, ...), or one for all, with the entries at ``index`` replaced by the grids (B, C, h, w)."""
    rows = index.flatten().expand(len(grids), -1)
    flat = x.flatten(1).expand(len(grids), -1)
    return flat.scatter(1, rows, grids.flatten(1)).view(-1, *x.shape[1:])
