"""Random masks: every pixel by hand, their statistics, and what they do not depend on."""

import itertools
import math

import pytest
import torch

from saliency.methods.masks import DrawnMasks, interpolate, random_masks


def reflect(i, n):
    """The cell that stands for one beyond the border: -1 is 1, n is n - 2."""
    if n == 1:
        return 0
    return 1 if i == -1 else n - 2 if i == n else i


def pixel(grid, shifts, size, at):
    """One pixel of a mask from the definition: the product of a tent function per axis, over all padded cells."""
    n, value = grid.shape[0], 0.0
    for cells in itertools.product(range(-1, n + 1), repeat=len(size)):
        weight = 1.0
        for i, y, shift, side in zip(cells, at, shifts, size, strict=True):
            cell = math.ceil((side + math.ceil(side / n)) / n)
            u = (y + shift + 0.5) / cell - 0.5
            weight *= max(0.0, 1 - abs(u - i))
        value += weight * float(grid[tuple(reflect(i, n) for i in cells)])
    return value


@pytest.mark.parametrize(
    ("size", "n"),
    [((11,), 4), ((9, 14), 3), ((9, 14), 1), ((5, 6), 2), ((7, 3), 5), ((5, 4), 9), ((4, 5, 6), 2)],
    ids=str,
)
def test_every_pixel_is_the_tent_weighted_sum_of_its_cells(size, n):
    generator = torch.Generator().manual_seed(3)
    grids = torch.rand(3, *[n] * len(size), generator=generator, dtype=torch.float64)
    reach = torch.tensor([math.ceil(side / n) for side in size])
    shifts = torch.rand(3, len(size), generator=generator, dtype=torch.float64) * reach - 0.5
    masks = interpolate(grids, shifts, size, torch.float64)
    assert masks.shape == (3, 1, *size)
    for grid, shift, mask in zip(grids, shifts.tolist(), masks[:, 0], strict=True):
        expected = [pixel(grid, shift, size, at) for at in itertools.product(*map(range, size))]
        torch.testing.assert_close(mask, torch.tensor(expected).double().view(size), rtol=0, atol=1e-6)


def test_a_row_by_hand():
    # Two cells of 3 pixels: centres at 1 and 4; the pixel in front of the first leans on its neighbour reflected.
    row = interpolate(torch.tensor([[1, 0]]), torch.tensor([[0.0]]), (3,), torch.float64)
    torch.testing.assert_close(row[0, 0], torch.tensor([2 / 3, 1, 2 / 3], dtype=torch.float64))
    shifted = interpolate(torch.tensor([[1, 0]]), torch.tensor([[1.0]]), (3,), torch.float64)
    torch.testing.assert_close(shifted[0, 0], torch.tensor([1, 2 / 3, 1 / 3], dtype=torch.float64))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_every_pixel_has_mean_p(p):
    masks = random_masks(4000, (15, 22), num_cells=4, p=p)
    mean = masks.mean(0)
    # The variance of a pixel is at most p (1 - p): five of its standard errors, over 330 pixels.
    assert (mean - p).abs().max() < 5 * math.sqrt(p * (1 - p) / 4000)
    assert masks.min() >= 0
    assert masks.max() <= 1


def test_p_one_hides_nothing():
    torch.testing.assert_close(random_masks(5, (20, 30), p=1.0), torch.ones(5, 1, 20, 30))


def test_a_single_cell_is_kept_or_not():
    masks = random_masks(40, (6, 5), num_cells=1, dtype=torch.float64).flatten(1)
    torch.testing.assert_close(masks, masks[:, :1].round().expand(-1, 30))
    assert set(masks[:, 0].round().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("batch_size", [1, 2, 7, 32, 100, 1000])
def test_no_mask_depends_on_the_size_of_its_chunk(batch_size):
    arguments = (100, (13, 10), 5, 0.5, 4)
    masks = DrawnMasks(*arguments, torch.device("cpu"), torch.float32)
    chunks = [masks[start : start + batch_size] for start in range(0, 100, batch_size)]
    torch.testing.assert_close(torch.cat(chunks), random_masks(*arguments), rtol=0, atol=1e-6)


def test_masks_are_made_when_they_are_asked_for():
    # All of these would take 400 GB.
    masks = DrawnMasks(100_000, (1000, 1000), 7, 0.5, 0, torch.device("cpu"), torch.float32)
    assert len(masks) == 100_000
    assert masks[4:6].shape == (2, 1, 1000, 1000)


def test_on_a_device_without_values():
    assert random_masks(5, (9, 8), device="meta").shape == (5, 1, 9, 8)


def test_the_seed_alone_decides():
    before = torch.get_rng_state()
    masks = random_masks(20, (12, 12), seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert torch.equal(random_masks(20, (12, 12), seed=1), masks)
    assert not torch.equal(random_masks(20, (12, 12), seed=2), masks)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_masks_of_every_dtype_are_the_same_up_to_rounding(dtype):
    masks = random_masks(10, (17, 9), dtype=dtype)
    assert masks.dtype == dtype
    expected = random_masks(10, (17, 9), dtype=torch.float64)
    rounding = max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)
    torch.testing.assert_close(masks.double(), expected, rtol=0, atol=20 * rounding)


def test_autocast_and_inference_mode_change_nothing():
    expected = random_masks(10, (17, 9))
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        assert torch.equal(random_masks(10, (17, 9)), expected)


@pytest.mark.parametrize("size", [(30,), (12, 15), (5, 6, 7)], ids=str)
def test_any_number_of_axes(size):
    masks = random_masks(50, size, num_cells=3)
    assert masks.shape == (50, 1, *size)
    assert len({tuple(mask.flatten().tolist()) for mask in masks}) > 25


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_masks": 0}, "num_masks=0"),
        ({"num_masks": 2.0}, r"num_masks=2\.0"),
        ({"num_masks": True}, "num_masks=True"),
        ({"num_cells": 0}, "num_cells=0"),
        ({"num_cells": (7, 7)}, r"num_cells=\(7, 7\)"),
        ({"p": 0}, "p=0"),
        ({"p": 1.1}, r"p=1\.1"),
        ({"p": float("nan")}, "p=nan"),
        ({"p": "0.5"}, r"p='0\.5'"),
        ({"seed": None}, "seed=None"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": 2**64}, "seed=18446744073709551616"),
        ({"size": 8}, "size=8"),
        ({"size": ()}, r"size=\(\)"),
        ({"size": (8, 0)}, r"size=\(8, 0\)"),
        ({"size": (8, 2.0)}, r"size=\(8, 2\.0\)"),
    ],
    ids=str,
)
def test_errors(options, words):
    with pytest.raises(ValueError, match=rf"^{words} .*expected .*\.$"):
        random_masks(**{"num_masks": 3, "size": (8, 8), **options})


def test_masks_do_not_depend_on_the_default_dtype():
    expected = random_masks(5, (8, 6), dtype=torch.float32)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(random_masks(5, (8, 6), dtype=torch.float32), expected)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_masks_are_shares(dtype):
    with pytest.raises(ValueError, match=r"dtype=.* is not a floating-point dtype; .*expected"):
        random_masks(5, (8, 6), dtype=dtype)
