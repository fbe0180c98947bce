"""Components: the connected parts of maps above a threshold, for all maps and thresholds in one sweep."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_FAR = torch.iinfo(torch.int64).max
# A pixel and the next one to the right, below, below on the right, below on the left: each pair of neighbours once.
_STEPS = ((0, 1), (1, 0), (1, 1), (1, -1))


class Components(NamedTuple):
    """R components of a batch: the map of each, (R,), its pixels, (R,), and its box x0, y0, x1, y1, (R, 4), half-open.

    They come in no particular order.
    """

    case: Tensor
    area: Tensor
    box: Tensor


def sweep(levels: Tensor, highest: int) -> Iterator[Components]:
    """Yield the 8-connected components of ``levels >= k`` for ``k = highest, ..., 1``.

    ``levels`` is an (N, H, W) LongTensor. Memory is some ten integers a pixel, whatever the number of levels.

    >>> levels = torch.tensor([[[2, 0, 1], [0, 0, 1]]])
    >>> [part.box.tolist() for part in sweep(levels, 2)]
    [[[0, 0, 1, 1]], [[0, 0, 1, 1], [2, 0, 3, 2]]]
    """
    # Steepest ascent never leaves the component, so a peak stands for all pixels from which it is reached, its basin:
    # only peaks need labels, and a smooth map has few. Lower thresholds only ever join components.
    height, width = levels.shape[1:]
    peaks, basin = _basins(levels)
    case = peaks.div(height * width, rounding_mode="floor")
    pixels, new_pixels = _by_level(torch.arange(levels.numel(), device=levels.device), levels.flatten(), highest)
    edges, new_edges = _by_level(*_borders(levels, basin), highest)
    parent = torch.arange(len(peaks), device=levels.device)
    area = torch.zeros_like(parent)
    corner = parent.new_full((len(peaks), 4), _FAR)  # x0, y0, -x1, -y1: the least of each
    for pixel, edge in zip(pixels.split(new_pixels), edges.split(new_edges), strict=True):
        owner = basin.flatten()[pixel]
        x, y = pixel % width, pixel.div(width, rounding_mode="floor") % height
        area.index_add_(0, owner, torch.ones_like(owner))
        corner.scatter_reduce_(0, _columns(owner), torch.stack((x, y, -1 - x, -1 - y), 1), "amin")
        parent = _join(parent, edge)
        total = torch.zeros_like(area).index_add_(0, parent, area)
        extreme = corner.scatter_reduce(0, _columns(parent), corner, "amin")
        alive = total.nonzero().flatten()
        box = extreme[alive]
        yield Components(case[alive], total[alive], torch.cat((box[:, :2], -box[:, 2:]), 1))


def _columns(index: Tensor) -> Tensor:
    return index[:, None].expand(-1, 4)


def _roots(parent: Tensor) -> Tensor:
    """Where each chain of a forest ends."""
    while not torch.equal(further := parent[parent], parent):
        parent = further
    return parent


def _basins(levels: Tensor) -> tuple[Tensor, Tensor]:
    """The pixels (M,) that are peaks, and for each pixel (N, H, W) which of the peaks is its own."""
    pixels = levels.numel()
    own = torch.arange(pixels, device=levels.device)
    height = levels * pixels + own.view_as(levels)  # no two are equal, so a plateau has one peak
    for axis in (1, 2):
        beyond = F.pad(height, (1, 1, 0, 0) if axis == 2 else (0, 0, 1, 1), value=-1)
        height = beyond.unfold(axis, 3, 1).amax(-1)
    top = _roots(height.flatten() % pixels)
    peaks = top == own
    return peaks.nonzero().flatten(), (peaks.cumsum(0) - 1)[top].view_as(levels)


def _borders(levels: Tensor, basin: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs of basins (E, 2) that touch, and the level (E,) from which on they do."""
    height, width = levels.shape[1:]
    pairs, lower = [], []
    for down, right in _STEPS:
        here = (..., slice(0, height - down), slice(max(0, -right), width - max(0, right)))
        there = (..., slice(down, height), slice(max(0, right), width + min(0, right)))
        pair = torch.stack((basin[here], basin[there]), -1).flatten(0, 2)
        apart = pair[:, 0] != pair[:, 1]
        pairs.append(pair[apart])
        lower.append(torch.minimum(levels[here], levels[there]).flatten()[apart])
    return torch.cat(pairs), torch.cat(lower)


def _by_level(rows: Tensor, level: Tensor, highest: int) -> tuple[Tensor, list[int]]:
    """The rows from the highest level down to 1, and how many each level has."""
    order = level.argsort(descending=True)
    counts = level.bincount(minlength=highest + 1).flip(0)[:-1].tolist()
    return rows[order[: sum(counts)]], counts


def _join(parent: Tensor, edges: Tensor) -> Tensor:
    """The roots (M,) after the two ends of each edge (E, 2) became one component, named by the least of its peaks."""
    while True:
        ends = parent[edges]
        apart = ends[:, 0] != ends[:, 1]
        if not apart.any():
            return parent
        edges = ends[apart]
        parent = _roots(parent.scatter_reduce(0, edges.amax(1), edges.amin(1), "amin"))
