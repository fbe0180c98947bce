"""Regions and boxes: what is asked of a segmenter or a detector is where its map is, and moves it.

The embedded network of the scenes is turned into both: its last layer classified cell by cell scores classes for each
place, and the mean score of a window of cells is that of a box. The scenes' own masks and boxes are the truth.
"""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from saliency import METHODS, find_layer, grad_cam, gradient, rise_class, targets
from saliency.scenes import Scene, make_scene, scene_network
from tests.cases import NOTICES

CELL = 8  # pixels
WINDOWS = range(2, 9)  # cells a side


class Segmenter(nn.Module):
    """The scores of all classes at every pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.network = scene_network()

    def cells(self, images: Tensor) -> Tensor:
        s = self.network
        x = s.layer4(s.layer3(s.layer2(s.layer1(s.relu(s.bn1(s.conv1(images)))))))
        return F.conv2d(x, s.fc.weight[..., None, None], s.fc.bias)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"out": F.interpolate(self.cells(images), images.shape[2:], mode="bilinear")}


class Detector(Segmenter):
    """Every square window of cells, the class that it scores highest, and that score."""

    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        cells, boxes, scores = self.cells(images), [], []
        for side in WINDOWS:
            means = F.avg_pool2d(cells, side, 1)
            y, x = torch.meshgrid(*map(torch.arange, means.shape[2:]), indexing="ij")
            boxes.append(torch.stack([x, y, x + side, y + side], -1).flatten(0, 1) * float(CELL))
            scores.append(means.flatten(2))
        best, labels = torch.cat(scores, 2).max(1)
        return [
            {"boxes": torch.cat(boxes), "scores": each, "labels": of} for each, of in zip(best, labels, strict=True)
        ]


def scenes() -> list[Scene]:
    """Scenes of two or three objects, each of a class of its own."""
    found = [make_scene(seed) for seed in range(40)]
    return [scene for scene in found if 2 <= len(scene.objects) == len({item.label for item in scene.objects}) <= 3]


SCENES = [pytest.param(scene, id=f"scene {number}") for number, scene in enumerate(scenes()[:3])]
# Each with the smoothing of its map; what is as fine as the image is noisy.
LOCALISING = {
    **dict.fromkeys(("gradient", "guided_backprop", "linear_approx"), 0.03),
    **dict.fromkeys(("excitation_backprop", "layer_cam", "hires_cam", "eigen_grad_cam"), 0.0),
}


def is_inside(saliency_map: Tensor, box: tuple[int, ...]) -> bool:
    """Is the maximum in the box, or as near to it as half a cell?"""
    y, x = divmod(int(saliency_map.argmax()), saliency_map.shape[-1])
    near = CELL // 2
    return box[0] - near <= x < box[2] + near and box[1] - near <= y < box[3] + near


@NOTICES
@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("kind", [Segmenter, Detector])
def test_the_maps_of_a_scene_move_from_object_to_object(kind, scene):
    """The peak is in the object whose region, or box, is asked about."""
    model, wrong = kind().eval(), []
    for item in scene.objects:
        region, box = targets.class_in_region(item.label, item.mask), targets.box_score(item.box, item.label)
        for name, smooth in LOCALISING.items():
            target = region if kind is Segmenter else box
            found = METHODS[name].function(model, scene.image[None], target, resize=True, smooth=smooth)
            wrong += [] if is_inside(found[0, 0], item.box) else [(name, item.label)]
    assert wrong == []


@pytest.mark.parametrize("scene", SCENES)
def test_grad_cam_finds_the_last_layer_with_a_grid(scene):
    target = targets.box_score(scene.objects[0].box, scene.objects[0].label)
    assert find_layer(Detector().eval(), scene.image[None], target=target) == "network.layer4"


def test_d_rise_moves_with_the_box():
    """The same masks, asked for one object and for another: each map is higher in its own object's box."""
    model, scene = Detector().eval(), scenes()[1]
    first, second = scene.objects
    for own, other in ((first, second), (second, first)):
        target = targets.detection_similarity(own.box, own.label)
        found = rise_class(model, scene.image[None], target, num_masks=300)[0, 0]
        inside, outside = (found[y0:y1, x0:x1].mean() for x0, y0, x1, y1 in (own.box, other.box))
        assert inside > outside


def by_hand(model: nn.Module, x: Tensor, target: object) -> Tensor:
    """The largest gradient of any channel, by autograd."""
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(target(model(x)).sum(), x)
    return gradient.abs().amax(1, keepdim=True)


def middle(saliency_map: Tensor) -> float:
    """The column at which a map has its centre of mass, as a share of its width."""
    columns = torch.arange(saliency_map.shape[-1]) + 0.5
    return float((saliency_map[0, 0].sum(0) * columns).sum() / saliency_map.sum() / len(columns))


@pytest.mark.sweep
@pytest.mark.parametrize("name", ["deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large", "fcn_resnet50"])
def test_torchvisions_segmenters(name):
    """Random weights: the gradient is autograd's; at the scores, before they are enlarged, it follows the region."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=3).double().eval()
    x, regions = torch.rand(1, 3, 64, 96, dtype=torch.float64), torch.zeros(2, 64, 96)
    regions[0, :, :16] = regions[1, :, -16:] = 1
    found = []
    for region in regions:
        target = targets.class_in_region(1, region)
        torch.testing.assert_close(target(model(x)), model(x)["out"][:, 1, region.bool()].mean(1))
        torch.testing.assert_close(gradient(model, x, target), by_hand(model, x, target))
        found.append(gradient(model, x, target, "classifier"))
        cam = grad_cam(model, x, target, reduction=None)
        assert cam.isfinite().all()
        assert cam.any()
    assert middle(found[0]) < 1 / 3 < 2 / 3 < middle(found[1])


@pytest.mark.sweep
@pytest.mark.parametrize("name", ["retinanet_resnet50_fpn", "keypointrcnn_resnet50_fpn"])
def test_torchvisions_detectors(name):
    """Random weights: of a box that was found, the score, a side and, where there are any, a keypoint.

    Faster R-CNN and SSDlite are in test_targets.py.
    """
    threshold = "box_score_thresh" if "rcnn" in name else "score_thresh"
    options = {threshold: 0.0, "num_classes": 2, "min_size": 64, "max_size": 64}
    if "rcnn" in name:
        options |= {"box_detections_per_img": 8, "rpn_post_nms_top_n_test": 30}
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None, weights_backbone=None, **options).double().eval()
    x = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        (found,) = model(x)
    chosen = int((found["boxes"][:, 2] < 63).nonzero()[0])  # the border holds other boxes where they are
    box, label = found["boxes"][chosen], int(found["labels"][chosen])
    asked = [targets.box_score(box, label), targets.box_coordinate(box, "x2", label)]
    expected = [found["scores"][chosen], box[2]]
    if "keypoints_scores" in found:
        asked.append(targets.keypoint_score(box, 3, label))
        expected.append(found["keypoints_scores"][chosen, 3])
    for target, value in zip(asked, expected, strict=True):
        assert torch.equal(target(model(x)).detach(), value[None])
        torch.testing.assert_close(gradient(model, x, target), by_hand(model, x, target))
    assert grad_cam(model, x, asked[0], reduction=None).isfinite().all()
