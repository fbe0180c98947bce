"""LayerCAM of several layers by hand: the maximum of their maps, each divided by its maximum and squashed."""

import torch

from saliency import layer_cam, resize_saliency
from saliency.images import overlay, write_png
from saliency.scenes import make_scene, scene_network

model = scene_network()
scene = make_scene(1)
image, target = scene.image[None], scene.objects[0].label
maps = layer_cam(model, image, target, ["layer2", "layer3", "layer4"])
largest = max(maps, key=lambda each: each.numel())
scaled = [torch.tanh(2 * each / each.max()) for each in maps]
scaled = [resize_saliency(largest, each, True, "bilinear") for each in scaled]
saliency = resize_saliency(image, torch.cat(scaled, 1).amax(1, keepdim=True), True, "bilinear")
write_png(overlay(scene.image, saliency[0, 0]), "fused_manual.png")
