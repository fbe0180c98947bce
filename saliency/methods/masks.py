"""Random masks: coarse grids of kept and hidden cells, interpolated to the image size with a random shift."""

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from saliency.engine.checks import check_count, check_seed, is_int, is_number, shown
from saliency.engine.state import full_precision, on_device

_AT_ONCE = 32  # masks that are interpolated together


def random_masks(
    num_masks: int,
    size: Sequence[int],
    num_cells: int = 7,
    p: float = 0.5,
    seed: int = 0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """RISE's masks (M, 1, H, W) in [0, 1], 1 = kept, for images of ``size`` = (H, W), or of any number of axes.

    Each cell of a grid with ``num_cells`` per axis is kept with probability ``p``; the grid is interpolated
    linearly, reflected at its border, and shifted by a random fraction of a cell, so that every pixel has mean
    ``p``. Masks have their own random generator: equal seeds give the masks that :func:`rise` draws itself, on
    every device. Raises ``ValueError`` for a count below 1, a ``p`` outside (0, 1], or an invalid ``size``. Petsiuk
    et al., RISE, BMVC 2018.

    >>> random_masks(5, (8, 6), num_cells=3).shape
    torch.Size([5, 1, 8, 6])
    """
    check_masks(num_masks, num_cells, p, seed)
    if not isinstance(size, Sequence) or not size or not all(is_int(side) and side > 0 for side in size):
        raise ValueError(f"size={shown(size)} is not an image size; expected (height, width).")
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"dtype={shown(dtype)} is not a floating-point dtype; expected one such as torch.float32.")
    _check_device(device)
    masks = torch.empty(num_masks, 1, *size, device=device, dtype=dtype)
    drawn = DrawnMasks(num_masks, size, num_cells, p, seed, masks.device, dtype)
    for start in range(0, num_masks, _AT_ONCE):
        masks[start : start + _AT_ONCE] = drawn[start : start + _AT_ONCE]
    return masks


def _check_device(device: object) -> None:
    """Raise ``ValueError`` for a device that is not available."""
    try:
        torch.empty(0, device=device)  # type: ignore[call-overload]
    except (RuntimeError, AssertionError, TypeError, ValueError, NotImplementedError) as error:
        raise ValueError(f"device={shown(device)} is not available; expected a device of this machine.") from error


class DrawnMasks:
    """The masks of :func:`random_masks`, computed on access: ``drawn[start:stop]`` is (B, 1, H, W)."""

    def __init__(
        self,
        num_masks: int,
        size: Sequence[int],
        num_cells: int,
        p: float,
        seed: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._size, self._dtype = size, dtype
        # The grids are tiny: all are drawn up front, on the CPU, so that every device gets the same numbers.
        generator = torch.Generator("cpu").manual_seed(int(seed))
        draw = partial(torch.rand, generator=generator, device="cpu", dtype=torch.float32)
        cells = draw(num_masks, *[num_cells] * len(size)) < p
        reach = torch.tensor([_cell_sides(side, num_cells)[0] for side in size], device="cpu")
        shifts = draw(num_masks, len(size)) * reach - 0.5
        self._cells, self._shifts = (on_device(drawn, device) for drawn in (cells, shifts))

    def __len__(self) -> int:
        return len(self._cells)

    def __getitem__(self, part: slice) -> Tensor:
        return interpolate(self._cells[part], self._shifts[part], self._size, self._dtype)


def check_masks(num_masks: object, num_cells: object, p: object, seed: object) -> None:
    """Raise ``ValueError`` for arguments from which no masks can be drawn."""
    check_count("num_masks", num_masks)
    check_count("num_cells", num_cells)
    if not is_number(p) or not 0 < p <= 1:
        raise ValueError(f"p={shown(p)} is not a probability; expected a number in (0, 1].")
    check_seed(seed)


def _cell_sides(side: int, num_cells: int) -> tuple[int, int]:
    """The largest shift of masks along an axis, and the cell size with which a shifted grid still covers it."""
    reach = math.ceil(side / num_cells)
    return reach, math.ceil((side + reach) / num_cells)


def interpolate(cells: Tensor, shifts: Tensor, size: Sequence[int], dtype: torch.dtype) -> Tensor:
    r"""Masks (M, 1, ...size) from grids (M, n, ..., n), each shifted by ``shifts`` (M, axes) pixels.

    .. math:: m(y) = \sum_i g_i \max(0, 1 - |u - i|), \quad u = \frac{y + s + 1/2}{\mathrm{cell}} - \frac{1}{2}

    along every axis; the grid is extended by one reflected cell at its border. Computed in float32 or wider.

    >>> interpolate(torch.tensor([[1, 0]]), torch.tensor([[0.0]]), (3,), torch.float32)
    tensor([[[0.6667, 1.0000, 0.6667]]])
    """
    precision = torch.promote_types(dtype, torch.float32)
    masks, n = cells.to(precision), cells.shape[1]
    at = torch.arange(-1, n + 1, device=cells.device)
    # A grid of one cell has no neighbour to reflect; it repeats itself.
    reflected = torch.where(at < 0, 1, torch.where(at == n, n - 2, at)).clamp(0, n - 1)
    with full_precision(cells.device):
        for side, shift in zip(size, shifts.to(precision).unbind(1), strict=True):
            y = torch.arange(side, device=cells.device, dtype=precision)
            u = (y + shift[:, None] + 0.5) / _cell_sides(side, n)[1] - 0.5
            weight = (1 - (u[:, None] - at[:, None]).abs()).relu()
            # Each pass contracts the first axis and appends its pixels at the end; the last restores the order.
            padded = masks.reshape(len(cells), n, -1).index_select(1, reflected)
            masks = (padded.mT @ weight).reshape(len(cells), *masks.shape[2:], side)
    return masks.clamp_(0, 1)[:, None].to(dtype)
