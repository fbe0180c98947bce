"""COCO's segmentations: polygons, and run-length codes down the columns."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

LONGEST_NUMBER = 60  # bits


def segmentation_problem(segmentation: object, size: tuple[int, int]) -> str:
    """The problem with a segmentation in an image of ``size`` = (height, width), or ''; None and [] are none.

    >>> segmentation_problem([[1, 0, 3, 0, 3, 2]], (2, 4)), segmentation_problem([[1, 0, 3, 0]], (2, 4))
    ('', 'has a segmentation that is neither polygons nor a run-length code')
    """
    if isinstance(segmentation, dict):
        if segmentation.get("size") != list(size):
            return f"has a mask of size {segmentation.get('size')!r} in an image of size {list(size)!r}"
        try:
            counts = run_lengths(segmentation["counts"])
            full = sum(counts) == math.prod(size) and all(isinstance(n, int) and n >= 0 for n in counts)
            return "" if full else "has a mask that does not fill its image"
        except (TypeError, KeyError, ValueError):
            return "has a broken run-length code"
    polygons = segmentation or []
    if not isinstance(polygons, list) or not all(
        isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in polygons
    ):
        return "has a segmentation that is neither polygons nor a run-length code"
    try:
        near = all(math.isfinite(sum(p)) and -max(size) <= min(p) <= max(p) <= 2 * max(size) for p in polygons)
    except OverflowError:
        near = False
    except TypeError:
        return "has a polygon of other things than numbers"
    return "" if near else "has a polygon far outside of its image"  # filling it would take all memory there is


def draw_mask(segmentation: Any, size: tuple[int, int]) -> Tensor:
    """The mask (H, W), bool, of a segmentation that is sound; several polygons make their union.

    >>> draw_mask([[1, 0, 3, 0, 3, 2, 1, 2]], (2, 4)).int()
    tensor([[0, 1, 1, 0],
            [0, 1, 1, 0]], dtype=torch.int32)
    """
    height, width = size
    if isinstance(segmentation, list):
        from pycocotools import mask

        segmentation = mask.merge(mask.frPyObjects(segmentation, height, width))
    lengths = torch.tensor(run_lengths(segmentation["counts"]), device="cpu")
    inside = torch.arange(len(lengths), device="cpu") % 2 == 1
    return inside.repeat_interleave(lengths).view(width, height).T.contiguous()


def run_lengths(counts: Sequence[int] | str | bytes) -> list[int]:
    """How many pixels are outside, inside, outside … by turns, from such a list or from COCO's text for it.

    A character holds 5 bits, the lowest first, and a sixth that says whether more follow; the highest bit of a number
    is its sign. From the fourth number on, each is the difference from the one before the last.

    >>> run_lengths("242"), run_lengths(b"1213M")
    ([2, 4, 2], [1, 2, 1, 5, -2])
    """
    if not isinstance(counts, (str, bytes)):
        return list(counts)
    lengths: list[int] = []
    value = shift = 0
    for character in counts.encode() if isinstance(counts, str) else counts:
        bits = character - 48
        if shift > LONGEST_NUMBER:
            raise ValueError(f"counts={counts[:40]!r} holds a number too large for an image; expected COCO's text.")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (bits >> 4 & 1) << shift
            lengths.append(value + lengths[-2] if len(lengths) > 2 else value)
            value = shift = 0
    return lengths
