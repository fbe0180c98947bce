"""The activation by hand: a probe on the layer and a forward pass."""

import torch

from saliency import Probe, get_module, resize_saliency, sum_channels
from saliency.images import overlay, write_png
from saliency.scenes import make_scene, scene_network

model = scene_network()
scene = make_scene(1)
image, target = scene.image[None], scene.objects[0].label
with Probe(get_module(model, "layer4"), target="output") as probe, torch.no_grad():
    model(image)
saliency = resize_saliency(image, sum_channels(probe.data[0].detach()), True, "bilinear")
write_png(overlay(scene.image, saliency[0, 0]), "activation_manual.png")
