"""Localisation beside Quantus, and components and boxes beside SciPy, OpenCV and torchvision."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import box_iou as torchvision_box_iou

from saliency.evaluation.metrics.components import sweep
from saliency.evaluation.metrics.localisation import box_iou, boxes_to_mask, energy_pointing_game, pointing_game

ndimage = pytest.importorskip("scipy.ndimage")
cv2 = pytest.importorskip("cv2")
quantus = pytest.importorskip("quantus")

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore::UserWarning:quantus")]

SIZE = 224
QUIET = {"disable_warnings": True, "display_progressbar": False}


def smooth_maps(cells, count=4):
    maps = F.interpolate(torch.rand(count, 1, cells, cells), (SIZE, SIZE), mode="bicubic")
    maps = maps - maps.amin((2, 3), keepdim=True)
    return maps / maps.amax((2, 3), keepdim=True)


def some_masks():
    corners = torch.randint(0, SIZE // 2, (4, 2))
    boxes = torch.cat((corners, corners + torch.randint(20, SIZE // 2, (4, 2))), 1)
    return boxes, torch.stack([boxes_to_mask(box[None], (SIZE, SIZE)) for box in boxes])


def scipy_components(mask):
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    boxes = [[x.start, y.start, x.stop, y.stop] for y, x in ndimage.find_objects(labels)]
    return sorted(zip(areas.tolist(), boxes, strict=True))


@pytest.mark.parametrize("cells", [7, 28, 112, SIZE])
def test_components_as_scipy(cells):
    levels = (smooth_maps(cells, 2)[:, 0] * 9).long()
    for level, found in zip(range(9, 0, -1), sweep(levels, 9), strict=True):
        for case in range(2):
            mine = found.case == case
            ours = sorted(zip(found.area[mine].tolist(), found.box[mine].tolist(), strict=True))
            assert ours == scipy_components((levels[case] >= level).numpy())


def opencv_boxes(mask):
    """The box of the largest contour and of every outer one, as in the code that goes with the paper."""
    contours, _ = cv2.findContours(mask.numpy().astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    rectangles = [cv2.boundingRect(contour) for contour in (max(contours, key=cv2.contourArea), *contours)]
    largest, *others = [[x, y, x + width, y + height] for x, y, width, height in rectangles]
    return torch.tensor([largest]), torch.tensor(others)


def test_box_iou_as_opencv_and_torchvision():
    maps, (boxes, _) = smooth_maps(7), some_masks()
    thresholds = [0.2, 0.4, 0.5, 0.6, 0.8]
    truth = [box[None] for box in boxes]
    largest, every = box_iou(maps, truth, thresholds), box_iou(maps, truth, thresholds, components="all")
    for case, box in enumerate(truth):
        for column, threshold in enumerate(thresholds):
            one, several = opencv_boxes(maps[case, 0] >= threshold)
            torch.testing.assert_close(largest[case, column], torchvision_box_iou(one, box).max())
            torch.testing.assert_close(every[case, column], torchvision_box_iou(several, box).max())


def test_opencv_fills_the_holes_of_a_contour():
    # The paper says the component with the largest area; the code that goes with it takes the largest contour.
    map = torch.zeros(1, 1, 40, 40)
    map[..., 0:20, 0:20] = 1
    map[..., 1:19, 1:19] = 0  # a ring of 76 pixels around 324
    map[..., 25:37, 25:37] = 1  # a square of 144 pixels
    contour, _ = opencv_boxes(map[0, 0] > 0.5)
    assert contour.tolist() == [[0, 0, 20, 20]]
    assert box_iou(map, [torch.tensor([[25, 25, 37, 37]])], [0.5]).tolist() == [[1]]


def quantus_scores(metric, maps, masks):
    return metric(
        model=None,
        x_batch=np.zeros((len(maps), 3, SIZE, SIZE), dtype=np.float32),
        y_batch=np.zeros(len(maps), dtype=int),
        a_batch=maps.numpy(),
        s_batch=masks[:, None].numpy(),
        channel_first=True,
    )


@pytest.mark.parametrize("name", ["RelevanceMassAccuracy", "AttributionLocalisation"])
def test_energy_of_positive_maps(name):
    maps, (_, masks) = smooth_maps(7), some_masks()
    theirs = quantus_scores(getattr(quantus, name)(**QUIET), maps, masks)
    torch.testing.assert_close(energy_pointing_game(maps, masks), torch.tensor(theirs, dtype=torch.float32))


def test_energy_of_signed_maps():
    maps, (_, masks) = smooth_maps(7) - 0.5, some_masks()
    theirs = quantus_scores(
        quantus.AttributionLocalisation(positive_attributions=True, abs=False, **QUIET), maps, masks
    )
    torch.testing.assert_close(energy_pointing_game(maps, masks), torch.tensor(theirs, dtype=torch.float32))


def test_its_mass_of_signed_maps_is_no_share():
    # It divides by the sum of positive and negative values.
    map = torch.full((1, 1, SIZE, SIZE), -1.0)
    map[..., :150] = 2
    mask = (map > 0)[:, 0]
    assert energy_pointing_game(map, mask).tolist() == [1]
    assert quantus_scores(quantus.RelevanceMassAccuracy(**QUIET), map, mask)[0] > 1.2


def test_pointing_game():
    maps, (_, masks) = torch.rand(4, 1, SIZE, SIZE), some_masks()
    theirs = quantus_scores(quantus.PointingGame(**QUIET), maps, masks)
    assert pointing_game(maps, masks, tolerance=0).tolist() == [bool(hit) for hit in theirs]
