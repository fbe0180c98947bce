"""A detector's box: what speaks for this object, and not for the others?

The detector is made of the scenes' classifier, and answers as torchvision's do: boxes, labels and scores of each image.
"""

import torch
from torch import nn

from saliency import layer_cam
from saliency.plot import contact_sheet
from saliency.scenes import CLASSES, make_scene, scene_network
from saliency.targets import box_score


class Detector(nn.Sequential):
    """Every place of a 16 x 16 grid has a box of 32 pixels, of its best class."""

    def forward(self, x):
        scores, labels = fc(super().forward(x).movedim(1, 3)).flatten(1, 2).max(2)
        return [{"boxes": BOXES, "labels": own, "scores": s} for own, s in zip(labels, scores, strict=True)]


*body, _, fc = scene_network().children()
middles = torch.cartesian_prod(torch.arange(16), torch.arange(16)).flip(1) * 8 + 4
BOXES = torch.cat([middles - 16, middles + 16], 1).float()
scene = make_scene(9)
targets = {CLASSES[item.label]: box_score(item.box, item.label, 0.3) for item in scene.objects[:3]}
maps = {name: layer_cam(Detector(*body), scene.image[None], target, "5") for name, target in targets.items()}
contact_sheet([scene.image], maps, [], "detector_box.png")
