"""Ablation-CAM by hand: the network behind the layer, with one channel set to 0 at a time."""

import torch

from saliency import Probe, resize_saliency
from saliency.images import overlay, write_png
from saliency.scenes import make_scene, scene_network

model = scene_network()
scene = make_scene(1)
image, target = scene.image[None], scene.objects[0].label
with Probe(model.layer4, target="output") as probe:
    score = model(image)[0, target]
x = probe.data[0].detach()
without = x * (1 - torch.eye(x.shape[1]))[:, :, None, None]
weights = (score - model.fc(without.mean((2, 3)))[:, target]) / score
cam = (weights[:, None, None] * x[0]).sum(0).relu()[None, None].detach()
saliency = resize_saliency(image, cam, True, "bilinear")
write_png(overlay(scene.image, saliency[0, 0]), "ablation_cam_manual.png")
