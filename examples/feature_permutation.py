"""Feature permutation in one call: patches of a layer are replaced by those of another image."""

import torch

from saliency import feature_permutation
from saliency.images import overlay, write_png
from saliency.scenes import make_scene, scene_network

model = scene_network()
scene = make_scene(1)
images, target = torch.stack([scene.image, make_scene(2).image]), scene.objects[0].label
patches = torch.arange(16).view(1, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
saliency = feature_permutation(model, images, target, "layer4", patches, resize=(128, 128))[:1]
write_png(overlay(scene.image, saliency[0, 0]), "feature_permutation.png")
