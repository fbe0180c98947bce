"""Localisation scores on cases whose answer is known."""

import pytest
import torch
import torch.nn.functional as F

from saliency.evaluation.metrics.localisation import (
    box_iou,
    boxes_to_mask,
    energy_pointing_game,
    mask_iou,
    max_box_accuracy,
    pointing_game,
    points_hit,
    saliency_points,
)
from tests.evaluation.metrics.test_components import flood_fill


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
    with pytest.raises(ValueError, match="not a batch of maps"):
        saliency_points(torch.rand(1, 2, 5, 5))
    with pytest.raises(ValueError, match="bool masks"):
        points_hit(torch.zeros(1, 2), mask.float())
    with pytest.raises(ValueError, match="are not boxes"):
        boxes_to_mask(torch.zeros(4), (5, 5))
    with pytest.raises(ValueError, match="radius"):
        points_hit(torch.zeros(1, 2), mask, -1)


def test_energy_on_the_object():
    map = torch.tensor([[1.0, 2.0, -4.0], [0.0, 5.0, 0.0]])[None, None]
    mask = torch.tensor([[False, True, True], [False, False, False]])[None]
    assert energy_pointing_game(map, mask).tolist() == [0.25]  # 2 of 1 + 2 + 5
    assert energy_pointing_game(map, ~mask).tolist() == [0.75]
    assert energy_pointing_game(map, torch.ones_like(mask)).tolist() == [1.0]
    assert energy_pointing_game(mask[:, None].float(), mask).tolist() == [1.0]


@pytest.mark.parametrize("value", [0.0, -3.0])
def test_a_map_without_energy_has_none_on_the_object(value):
    assert energy_pointing_game(torch.full((2, 1, 4, 4), value), torch.ones(2, 4, 4).bool()).tolist() == [0, 0]


@pytest.mark.parametrize("scale", [1e-44, 1e-30, 1e37])
def test_energy_has_no_scale(scale):
    maps, masks = torch.full((1, 1, 20, 20), scale), boxes_to_mask(torch.tensor([[0, 0, 10, 10]]), (20, 20))[None]
    assert energy_pointing_game(maps, masks).tolist() == [0.25]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_energy_and_iou_count_in_at_least_single_precision(dtype):
    maps = boxes_to_mask(torch.tensor([[0, 0, 100, 201]]), (300, 300))[None, None].to(dtype)
    masks = boxes_to_mask(torch.tensor([[50, 0, 150, 201]]), (300, 300))[None]
    wide = torch.promote_types(dtype, torch.float32)
    results = [
        energy_pointing_game(maps, masks),
        mask_iou(maps, masks, [0.5]),
        box_iou(maps, [torch.tensor([[50, 0, 150, 201]])], [0.5]),
    ]
    assert [result.dtype for result in results] == [wide] * 3
    for result, expected in zip(results, (1 / 2, 1 / 3, 1 / 3), strict=True):
        torch.testing.assert_close(result.flatten(), torch.tensor([expected], dtype=wide))


def loop_box_iou(box, other):
    width = max(0, min(box[2], other[2]) - max(box[0], other[0]))
    height = max(0, min(box[3], other[3]) - max(box[1], other[1]))
    areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (box, other)]
    return width * height / (sum(areas) - width * height)


def loop_ious(map, mask, boxes, threshold):
    """The IoU of the mask, of the largest component's box and of the best component's box at a threshold."""
    share = (map - map.min()) / (map.max() - map.min())
    above = share >= threshold
    parts = flood_fill(above.tolist())
    best = [(area, max(loop_box_iou(box, other) for other in boxes.tolist())) for area, box in parts]
    masks = (above & mask).sum().item() / (above | mask).sum().item()
    largest = max((iou for area, iou in best if area == max(parts)[0]), default=0)
    return masks, largest, max((iou for _, iou in best), default=0)


def test_iou_as_in_plain_loops():
    maps = torch.cat([torch.randn(3, 1, 19, 23), F.interpolate(torch.rand(3, 1, 5, 5), (19, 23), mode="bicubic")])
    boxes = [torch.tensor([[1, 2, 9, 8], [5, 5, 22, 19]])[: 1 + case % 2] + case % 3 for case in range(6)]
    masks = torch.stack([boxes_to_mask(box, (19, 23)) for box in boxes])
    thresholds = [0.9, 0.0, 0.31, 1.0, 0.5, 0.5]
    results = [
        mask_iou(maps, masks, thresholds),
        box_iou(maps, boxes, thresholds),
        box_iou(maps, boxes, torch.tensor(thresholds), components="all"),
    ]
    for case in range(6):
        for column, threshold in enumerate(thresholds):
            expected = loop_ious(maps[case, 0], masks[case], boxes[case], threshold)
            for result, value in zip(results, expected, strict=True):
                assert result[case, column].item() == pytest.approx(value)


def test_thresholds_are_those_of_the_protocol():
    maps = torch.arange(101.0).view(1, 1, 1, 101) / 100
    mask = torch.ones(1, 1, 101).bool()
    expected = torch.tensor([(101 - step) / 101 for step in range(100)])
    torch.testing.assert_close(mask_iou(maps, mask)[0], expected)
    torch.testing.assert_close(box_iou(maps, [torch.tensor([[0, 0, 101, 1]])])[0], expected)


def test_a_map_that_is_the_object():
    box = torch.tensor([[4, 2, 11, 9]])
    masks = boxes_to_mask(box, (20, 16))[None]
    thresholds = [0.0, 0.01, 1.0]
    for ious in (
        mask_iou(masks[:, None] * 7.0 - 3, masks, thresholds),
        box_iou(masks[:, None] * 7.0 - 3, [box], thresholds),
    ):
        torch.testing.assert_close(ious, torch.tensor([[49 / 320, 1, 1]]))


def test_a_constant_map_is_the_whole_image_at_threshold_0():
    mask, maps = torch.ones(1, 4, 4).bool(), torch.full((1, 1, 4, 4), 3.0)
    assert mask_iou(maps, mask, [0.0, 0.1]).tolist() == [[1, 0]]
    assert box_iou(maps, [torch.tensor([[0, 0, 4, 4]])], [0.0, 0.1]).tolist() == [[1, 0]]


def test_the_largest_component_has_most_pixels_not_the_largest_box():
    map = torch.zeros(1, 1, 9, 9)
    map[0, 0, torch.arange(6), torch.arange(6)] = 1  # 6 pixels, a box of 36
    map[0, 0, 7:9, 5:9] = 1  # 8 pixels, a box of 8
    truth = [torch.tensor([[0, 0, 6, 6]])]
    assert box_iou(map, truth, [0.5]).tolist() == [[0]]
    assert box_iou(map, truth, [0.5], components="all").tolist() == [[1]]


def test_cases_do_not_mix():
    maps = torch.rand(5, 1, 12, 14)
    boxes = [torch.tensor([[0, 0, 3 + case, 5]]) for case in range(5)]
    masks = torch.stack([boxes_to_mask(box, (12, 14)) for box in boxes])
    for single, both in (
        ([box_iou(maps[i : i + 1], boxes[i : i + 1]) for i in range(5)], box_iou(maps, boxes)),
        ([mask_iou(maps[i : i + 1], masks[i : i + 1]) for i in range(5)], mask_iou(maps, masks)),
    ):
        assert torch.equal(torch.cat(single), both)


def test_max_box_accuracy():
    ious = torch.tensor([[0.6, 0.1, 0.5], [0.4, 0.8, 0.3], [0.2, 0.9, 0.7], [0.1, 0.0, 0.5]])
    assert max_box_accuracy(ious).item() == 0.75  # the last threshold: 0.5, 0.7 and 0.5
    assert max_box_accuracy(ious, 0.3).item() == 1.0
    assert max_box_accuracy(ious, 0.7).item() == 0.5
    assert max_box_accuracy(ious, (0.3, 0.5, 0.7)).item() == 0.75


def test_the_threshold_is_shared_by_all_cases():
    assert max_box_accuracy(torch.tensor([[1.0, 0.0], [0.0, 1.0]])).item() == 0.5


def test_results_are_detached_and_inputs_untouched():
    maps, masks = torch.randn(2, 1, 6, 7, requires_grad=True), torch.rand(2, 6, 7) > 0.5
    before, boxes = maps.detach().clone(), [torch.tensor([[0, 0, 3, 3]])] * 2
    for result in (energy_pointing_game(maps, masks), mask_iou(maps, masks), box_iou(maps, boxes)):
        assert not result.requires_grad
    assert torch.equal(maps, before)


@pytest.mark.parametrize("metric", [energy_pointing_game, mask_iou])
def test_maps_and_masks_that_do_not_fit_are_refused(metric):
    maps, masks = torch.rand(2, 1, 5, 5), torch.ones(2, 5, 5).bool()
    for wrong, message in [
        ((maps, ~masks), r"masks=\[0, 1\] hold no pixel"),
        ((maps, masks[:1]), r"masks=\(1, 5, 5\)"),
        ((maps, masks.float()), "bool"),
        ((maps[..., 1:], masks), "not at the masks' size"),
        ((maps * torch.nan, masks), "expected finite maps"),
        ((maps.expand(2, 3, 5, 5), masks), "not a batch of maps"),
    ]:
        with pytest.raises(ValueError, match=message):
            metric(*wrong)


def test_boxes_and_options_that_do_not_fit_are_refused():
    maps, box = torch.rand(2, 1, 5, 5), torch.tensor([[0, 0, 2, 2]])
    with pytest.raises(ValueError, match=r"boxes=\[\(1, 4\)\] do not fit 2 maps"):
        box_iou(maps, [box])
    with pytest.raises(ValueError, match=r"boxes=\[\(1, 4\), \(0, 4\)\]"):
        box_iou(maps, [box, box[:0]])
    with pytest.raises(ValueError, match="components='some'"):
        box_iou(maps, [box, box], components="some")
    for thresholds in ([], [0.5, 1.5], [-0.1], [[0.5]], [float("nan")]):
        with pytest.raises(ValueError, match="thresholds="):
            box_iou(maps, [box, box], thresholds)
    for ious, delta, message in [
        (torch.rand(3), 0.5, "ious="),
        (torch.rand(0, 3), 0.5, "ious="),
        (torch.rand(2, 3), 0.0, "delta="),
        (torch.rand(2, 3), (), "delta="),
    ]:
        with pytest.raises(ValueError, match=message):
            max_box_accuracy(ious, delta)
