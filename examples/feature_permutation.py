"""Feature permutation in one call: each channel of a layer is replaced by that of another image."""

import torch

from saliency import feature_permutation
from saliency.images import overlay, write_png
from saliency.scenes import make_scene, scene_network

model = scene_network()
scene = make_scene(1)
images, target = torch.stack([scene.image, make_scene(2).image]), scene.objects[0].label
channels = torch.arange(80).view(1, -1, 1, 1)
saliency = feature_permutation(model, images, target, "layer4", channels, resize=(128, 128))[:1]
write_png(overlay(scene.image, saliency[0, 0]), "feature_permutation.png")
