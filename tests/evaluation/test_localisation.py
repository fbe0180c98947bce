"""Localisation scores on cases whose answer is known."""

import pytest
import torch

from saliency.evaluation.localisation import boxes_to_mask, pointing_game, points_hit, saliency_points


def one_pixel(x: int, y: int, width: int = 60, height: int = 50) -> torch.Tensor:
    tensor = torch.zeros(1, 1, height, width)
    tensor[0, 0, y, x] = 1
    return tensor


@pytest.mark.parametrize(
    ("dx", "dy", "hit"),
    [(0, 0, True), (15, 0, True), (0, -15, True), (9, 12, True), (16, 0, False), (11, 11, False), (10, 11, True)],
)
def test_the_disc_is_closed_and_round(dx, dy, hit):
    mask = one_pixel(30, 25)[:, 0].bool()
    assert pointing_game(one_pixel(30 + dx, 25 + dy), mask).tolist() == [hit]


def test_one_result_per_case():
    maps = torch.cat([one_pixel(3, 4), one_pixel(50, 40)])
    masks = boxes_to_mask(torch.tensor([[0, 0, 10, 10]]), (50, 60)).expand(2, -1, -1)
    assert pointing_game(maps, masks, tolerance=0).tolist() == [True, False]
    assert saliency_points(maps).tolist() == [[3, 4], [50, 40]]


def test_agrees_with_the_distance_to_every_pixel():
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(20, 30, 40, generator=generator) > 0.995
    masks[:, 0, 0] = True
    points = torch.randint(0, 30, (20, 2), generator=generator)
    for tolerance in (0, 3, 7.5):
        expected = [
            any((x - px) ** 2 + (y - py) ** 2 <= tolerance**2 for y, x in mask.nonzero().tolist())
            for mask, (px, py) in zip(masks, points.tolist(), strict=True)
        ]
        assert points_hit(points, masks, tolerance).tolist() == expected


def test_boxes_are_half_open():
    mask = boxes_to_mask(torch.tensor([[1, 0, 3, 2], [4, 3, 5, 4]]), (4, 5))
    assert mask.int().tolist() == [[0, 1, 1, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 1]]


def test_what_is_no_case_is_refused():
    mask = torch.ones(1, 5, 5, dtype=torch.bool)
    with pytest.raises(ValueError, match="hold no pixel"):
        pointing_game(torch.rand(1, 1, 5, 5), ~mask)
    with pytest.raises(ValueError, match="not at the masks' size"):
        pointing_game(torch.rand(1, 1, 4, 5), mask)
    with pytest.raises(ValueError, match="NaN"):
        pointing_game(torch.full((1, 1, 5, 5), torch.nan), mask)
    with pytest.raises(ValueError, match="no batch of maps"):
        saliency_points(torch.rand(1, 2, 5, 5))
    with pytest.raises(ValueError, match="bool masks"):
        points_hit(torch.zeros(1, 2), mask.float())
    with pytest.raises(ValueError, match="no boxes"):
        boxes_to_mask(torch.zeros(4), (5, 5))
    with pytest.raises(ValueError, match="no radius"):
        points_hit(torch.zeros(1, 2), mask, -1)
