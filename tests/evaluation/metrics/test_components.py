"""Components of maps, beside a flood fill in plain loops."""

import pytest
import torch
import torch.nn.functional as F

from saliency.evaluation.metrics.components import sweep


def flood_fill(mask):
    """The area and the box x0, y0, x1, y1 of each 8-connected part of a list of rows of booleans."""
    left = {(y, x) for y, row in enumerate(mask) for x, value in enumerate(row) if value}
    found = []
    while left:
        front, part = [left.pop()], []
        while front:
            y, x = front.pop()
            part.append((y, x))
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            front += near
        rows, columns = zip(*part, strict=True)
        found.append((len(part), [min(columns), min(rows), max(columns) + 1, max(rows) + 1]))
    return sorted(found)


def swept(levels, highest):
    """The components of each map at each level, as flood_fill gives them."""
    found = []
    for part in sweep(levels, highest):
        rows = list(zip(part.case.tolist(), part.area.tolist(), part.box.tolist(), strict=True))
        found.append([sorted(row[1:] for row in rows if row[0] == case) for case in range(len(levels))])
    return found


def expected(levels, highest):
    return [[flood_fill((level >= k).tolist()) for level in levels] for k in range(highest, 0, -1)]


def spiral(side):
    """A path one pixel wide that winds to the centre: as far as two connected pixels can be apart."""
    level = torch.zeros(side, side, dtype=torch.long)
    y, x, dy, dx = 0, -1, 0, 1
    for length in [side, *[n for n in range(side - 1, 0, -2) for _ in range(2)]]:
        for _ in range(length):
            y, x = y + dy, x + dx
            level[y, x] = 1
        dy, dx = dx, -dy
    return level


def random_levels(cases, height, width, highest, blocks=1):
    coarse = torch.randint(0, highest + 1, (cases, -(-height // blocks), -(-width // blocks)))
    return coarse.repeat_interleave(blocks, 1).repeat_interleave(blocks, 2)[:, :height, :width]


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 2), (13, 17), (24, 8)])
@pytest.mark.parametrize(("highest", "blocks"), [(1, 1), (2, 1), (7, 1), (40, 1), (3, 3)])
def test_as_a_flood_fill(size, highest, blocks):
    levels = random_levels(4, *size, highest, blocks)
    assert swept(levels, highest) == expected(levels, highest)


def test_smooth_maps():
    maps = F.interpolate(torch.rand(3, 1, 5, 5), (30, 26), mode="bicubic")[:, 0]
    levels = (maps.clamp(0, 1) * 12).long()
    assert swept(levels, 12) == expected(levels, 12)


def test_a_spiral_is_one_component():
    level = spiral(31)
    levels = torch.stack([level, level.flip(0), level.T, 1 - level])
    assert swept(levels, 1) == expected(levels, 1)
    assert len(swept(levels, 1)[0][0]) == 1


def test_corners_touch_and_borders_do_not():
    levels = torch.tensor([[[1, 0, 0], [0, 1, 0], [0, 0, 0]], [[1, 0, 1], [0, 0, 0], [1, 0, 1]]])
    assert swept(levels, 1) == [
        [[(2, [0, 0, 2, 2])], [(1, [0, 0, 1, 1]), (1, [0, 2, 1, 3]), (1, [2, 0, 3, 1]), (1, [2, 2, 3, 3])]]
    ]


def test_levels_that_no_pixel_has():
    levels = torch.tensor([[[0, 5, 0, 2]], [[0, 0, 0, 0]]])
    assert swept(levels, 6) == expected(levels, 6)
    assert swept(levels, 6)[0] == [[], []]
