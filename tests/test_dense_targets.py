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
