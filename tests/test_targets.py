"""Targets that are functions of the output: their values by definition, and maps that follow what is asked for."""

import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from saliency import METHODS, find_layer, grad_cam, gradient, rise_class, targets
from tests.cases import NOTICES

Z = torch.tensor([[1.0, 3.0, 0.5], [2.0, -1.0, 0.0]])


@pytest.mark.parametrize(
    ("target", "of_row"),
    [
        (targets.probability(1), lambda z: math.exp(z[1]) / sum(map(math.exp, z))),
        (targets.log_odds(1), lambda z: math.log((p := math.exp(z[1]) / sum(map(math.exp, z))) / (1 - p))),
        (targets.difference(1, 2), lambda z: z[1] - z[2]),
        (targets.total([0, 2]), lambda z: z[0] + z[2]),
        (targets.entropy(), lambda z: -sum((p := math.exp(v) / sum(map(math.exp, z))) * math.log(p) for v in z)),
    ],
)
def test_scores_of_classes(target, of_row):
    expected = torch.tensor([of_row(z) for z in Z.tolist()])
    torch.testing.assert_close(target(Z), expected)
    torch.testing.assert_close(target({"logits": Z, "loss": None}), expected)


def test_a_class_in_a_region():
    output, region = torch.rand(2, 3, 4, 5), torch.zeros(4, 5, dtype=torch.bool)
    region[1, 2:4] = True
    torch.testing.assert_close(targets.class_in_region(2, region)(output), output[:, 2, 1, 2:4].mean(1))


def test_a_class_in_a_region_of_a_volume():
    output, region = torch.rand(2, 3, 4, 5, 6), torch.zeros(4, 5, 6)
    region[1, 2:4, 3] = 1
    torch.testing.assert_close(targets.class_in_region(2, region)(output), output[:, 2, 1, 2:4, 3].mean(1))


class Detector(nn.Module):
    """Scores of given boxes: each the mean of one channel of a map inside of its box."""

    def __init__(self, boxes: list[list[float]]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.boxes = torch.tensor(boxes)

    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        found = []
        for features in self.conv(images).sigmoid():
            inside = [features[:, int(y1) : int(y2), int(x1) : int(x2)] for x1, y1, x2, y2 in self.boxes.tolist()]
            scores = torch.stack([part[0].mean() for part in inside])
            points = torch.stack([part[1:3].flatten(1).amax(1) for part in inside])
            boxes = self.boxes + scores[:, None] * torch.tensor([0.0, 0.0, 1.0, 0.0])
            found.append(
                {
                    "boxes": boxes,
                    "scores": scores,
                    "labels": torch.arange(len(boxes)) % 2,
                    "keypoints_scores": points,
                }
            )
        return found


BOXES = [[0.0, 0.0, 8.0, 8.0], [8.0, 8.0, 16.0, 16.0], [8.0, 8.0, 16.0, 14.0]]


@pytest.fixture
def detector() -> Detector:
    torch.manual_seed(0)
    return Detector(BOXES).eval()


def test_the_best_box_is_asked(detector):
    x = torch.rand(2, 3, 16, 16)
    found = detector(x)
    scores = torch.stack([each["scores"] for each in found])
    points = torch.stack([each["keypoints_scores"] for each in found])
    right = torch.stack([each["boxes"] for each in found])[:, :, 2]
    assert torch.equal(targets.box_score(BOXES[0])(found), scores[:, 0])
    assert torch.equal(targets.box_score(torch.tensor(BOXES[2]))(found), scores[:, 2])
    assert torch.equal(targets.box_score(BOXES[2], label=1)(found), scores[:, 1])  # the other has label 0
    assert torch.equal(targets.box_coordinate(BOXES[1], "x2", label=1)(found), right[:, 1])
    assert torch.equal(targets.keypoint_score(BOXES[0], 1)(found), points[:, 0, 1])
    # 8 x 8 and 8 x 6 overlap by 3/4; 0.9 asks for more.
    assert targets.box_score(BOXES[2], label=1, iou_threshold=0.9)(found).tolist() == [0, 0]
    assert targets.box_score((8, 0, 16, 8))(found).tolist() == [0, 0]


def test_the_similarity_of_detections_is_overlap_times_score(detector):
    x = torch.rand(2, 3, 16, 16)
    found = detector(x)
    for n, similarity in enumerate(targets.detection_similarity((8, 8, 16, 16), label=1)(found)):
        x2 = found[n]["boxes"][1, 2].item()
        torch.testing.assert_close(similarity, found[n]["scores"][1] * 64 / (8 * (x2 - 8)))
    assert targets.detection_similarity((8, 8, 16, 16), label=5)(found).tolist() == [0, 0]


def test_no_detection_at_all_scores_0():
    nothing = [{"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.long)}]
    assert targets.box_score((0, 0, 1, 1))(nothing).tolist() == [0]
    assert targets.detection_similarity((0, 0, 1, 1))(nothing).tolist() == [0]


@pytest.mark.parametrize(("box", "inside"), [(BOXES[0], slice(0, 8)), (BOXES[1], slice(8, 16))])
def test_the_map_moves_with_the_box(detector, box, inside):
    """A score is made of what is inside its box: so is its map, but for the border of the 3 x 3 convolution."""
    x = torch.rand(1, 3, 16, 16)
    for target in (targets.box_score(box), targets.box_coordinate(box, "x2"), targets.detection_similarity(box)):
        mass = gradient(detector, x, target)[0, 0]
        assert mass[inside, inside].sum() > 0.8 * mass.sum() > 0
    assert find_layer(detector, x, target=targets.box_score(box)) == "conv"
    cam = grad_cam(detector, x, targets.box_score(box))
    assert torch.equal(cam, grad_cam(detector, x, targets.box_score(box), "conv"))


@NOTICES
@pytest.mark.parametrize("method", ["rise", "occlusion", "feature_ablation", "guided_backprop", "integrated_gradients"])
def test_methods_of_every_kind_explain_a_detector(detector, method):
    options = {"num_masks": 3} if method == "rise" else {}
    maps = METHODS[method].function(detector, torch.rand(2, 3, 16, 16), targets.box_score(BOXES[1]), **options)
    assert maps.shape == (2, 1, 16, 16)
    assert maps.isfinite().all()


def test_d_rise(detector):
    x, target = torch.rand(1, 3, 16, 16), targets.detection_similarity(BOXES[1])
    assert rise_class(detector, x, target, num_masks=4).shape == (1, 1, 16, 16)


class Queries(NamedTuple):
    logits: Tensor
    pred_boxes: Tensor


@pytest.mark.parametrize("form", [lambda output: output, lambda output: output._asdict()])
def test_the_query_whose_box_is_nearest(form):
    """Centre and size: the second query of the first image, the first of the second, is the one in the corner."""
    corner, middle = [0.9, 0.9, 0.2, 0.2], [0.5, 0.5, 0.4, 0.4]
    output = Queries(torch.rand(2, 2, 5), torch.tensor([[middle, corner], [corner, middle]]))
    found = targets.query_score((0.85, 0.9, 0.2, 0.2), 3)(form(output))
    assert torch.equal(found, torch.stack([output.logits[0, 1, 3], output.logits[1, 0, 3]]))


@pytest.mark.parametrize("build", ["fasterrcnn_mobilenet_v3_large_320_fpn", "ssdlite320_mobilenet_v3_large"])
def test_torchvisions_detectors(build):
    detection = pytest.importorskip("torchvision.models.detection")
    threshold = "box_score_thresh" if "rcnn" in build else "score_thresh"
    torch.manual_seed(0)
    model = getattr(detection, build)(weights=None, weights_backbone=None, **{threshold: 0.0}).double().eval()
    x = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        found = model(x)[0]
    target = targets.box_score(found["boxes"][0], int(found["labels"][0]))
    assert torch.equal(target(model(x)).detach(), found["scores"][:1])
    x.requires_grad_()
    (expected,) = torch.autograd.grad(target(model(x)).sum(), x)
    assert expected.any()
    torch.testing.assert_close(gradient(model, x, target), expected.abs().amax(1, keepdim=True))
    assert grad_cam(model, x, target).isfinite().all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: targets.probability(-1), r"index=-1 is not a valid index"),
        (lambda: targets.difference(0, "cat"), r"other='cat' is not a valid index"),
        (lambda: targets.total([]), r"indices=\[\] is not a list of classes"),
        (lambda: targets.class_in_region(0, torch.zeros(2, 2)), r"region=a tensor of shape \(2, 2\) is not a mask"),
        (lambda: targets.box_score((0, 0, 0, 3)), r"box=\(0, 0, 0, 3\) is empty"),
        (lambda: targets.box_score((0, 0, 3)), r"box=\(0, 0, 3\) is not a box"),
        (lambda: targets.box_score((0, 0, 3, 3), iou_threshold=2), r"iou_threshold=2 is not a valid overlap"),
        (lambda: targets.box_coordinate((0, 0, 3, 3), "left"), r"side='left' is not a side"),
        (lambda: targets.probability(3)(Z), r"target asks for class 3 of an output that is a tensor of shape \(2, 3\)"),
        (lambda: targets.box_score((0, 0, 3, 3))(Z), r"target needs boxes and scores of each image"),
        (lambda: targets.query_score((0, 0, 3, 3), 0)(Z), r"target needs 'pred_boxes', but the output"),
        (lambda: targets.class_in_region(0, torch.ones(2, 2))(torch.rand(1, 2, 3, 3)), r"region=.* does not fit"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        make()
