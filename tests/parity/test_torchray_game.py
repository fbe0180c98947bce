"""TorchRay's pointing game beside ours, on masks, VOC's boxes and COCO's outlines, at each whole pixel."""

import warnings

import pytest
import torch

pytest.importorskip("torchray.attribution.common")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it reads its files in a way that is deprecated
    from torchray.benchmark import pointing_game as theirs

from torchvision.datasets import CocoDetection, VOCDetection

from saliency import torchray as ours
from tests.evaluation.trees import COCO_IDS, coco_tree, voc_tree

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("default")]  # TorchRay's own

TOLERANCE = 5
POINTS = [(x, y) for y in range(0, 30, 2) for x in range(0, 40, 2)]


def distance_of(mask, point):
    """The squared distance of a point to the nearest pixel of the mask."""
    y, x = mask.nonzero().T
    return int(((x - point[0]) ** 2 + (y - point[1]) ** 2).min())


def compare(verdicts, squared):
    """Equal but for points at the edge of the disc, which are hits of ours alone."""
    for (own, other), distance in zip(verdicts, squared, strict=True):
        assert own == other or ((own, other) == (1, -1) and distance == TOLERANCE**2)
    assert {own for own, _ in verdicts} == {1, -1}


def test_verdicts_and_accuracies():
    generator = torch.Generator().manual_seed(0)
    games = ours.PointingGame(4, TOLERANCE), theirs.PointingGame(4, TOLERANCE)
    verdicts, squared = [], []
    for label in (0, 1, 3):
        mask = torch.rand(30, 40, generator=generator) > 0.995
        found = [tuple(game.evaluate(mask, point) for game in games) for point in POINTS]
        own = [distance_of(mask, point) for point in POINTS]
        for hit, _ in found:
            for game in games:
                game.aggregate(hit, label)
        verdicts, squared = verdicts + found, squared + own
    compare(verdicts, squared)
    assert any(own != other for own, other in verdicts)
    played = [0, 1, 3]
    torch.testing.assert_close(games[0].hits, games[1].hits)
    torch.testing.assert_close(games[0].misses, games[1].misses)
    torch.testing.assert_close(games[0].class_accuracies[played], games[1].class_accuracies[played])
    assert games[0].class_accuracies[2].isnan()
    assert games[1].class_accuracies[2] == 0
    torch.testing.assert_close(games[0].accuracy, 4 / 3 * games[1].accuracy)  # a class that nobody played is not 0 %


@pytest.mark.parametrize("kind", ["voc", "coco"])
def test_benchmarks(tmp_path, kind):
    if kind == "voc":
        voc_tree(
            tmp_path, {"1": [("cat", (6, 5, 12, 11)), ("cat", (30, 20, 33, 28), True), ("cow", (1, 1, 2, 2), True)]}
        )
        dataset = VOCDetection(str(tmp_path), year="2007", image_set="test")
        classes = [7, 9, 0]
    else:
        outline = {"segmentation": [[6, 5, 12, 5, 9, 14]], "area": 27.0}
        objects = [{"category_id": COCO_IDS[15], "bbox": [6, 5, 6, 9], **outline}]
        coco_tree(tmp_path, {"1.jpg": objects})
        folder = str(tmp_path / "val2014")
        dataset = CocoDetection(folder, str(tmp_path / "annotations" / "instances_val2014.json"))
        classes = [15]
    games = [module.PointingGameBenchmark(dataset, tolerance=TOLERANCE) for module in (ours, theirs)]
    assert games[0].num_classes == games[1].num_classes
    _, label = dataset[0]
    for class_id in classes:
        verdicts = [tuple(game.evaluate(label, class_id, point) for game in games) for point in POINTS]
        if class_id != classes[0]:
            assert set(verdicts) == {(0, 0)}
            continue
        mask = torch.zeros(30, 40, dtype=torch.bool)
        if kind == "voc":
            mask[4:11, 5:12] = True
            mask[19:28, 29:33] = True
        else:
            mask = torch.from_numpy(dataset.coco.annToMask(label[0])) > 0
        compare(verdicts, [distance_of(mask, point) for point in POINTS])
