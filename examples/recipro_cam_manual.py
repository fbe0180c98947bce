"""Recipro-CAM by hand: the network behind the layer sees one position, and its neighbours faintly."""

import torch

from saliency import Probe, resize_saliency
from saliency.images import overlay, write_png
from saliency.scenes import make_scene, scene_network

model = scene_network()
scene = make_scene(1)
image, target = scene.image[None], scene.objects[0].label
with Probe(model.layer4, target="output") as probe, torch.no_grad():
    model(image)
x = probe.data[0].detach()
kernel = torch.tensor([0.25, 0.5, 0.25])
spots = torch.eye(x[0, 0].numel()).view(-1, 1, *x.shape[2:])
masks = torch.nn.functional.conv2d(spots, (kernel[:, None] * kernel)[None, None], padding=1)
scores = model.fc((x * masks).mean((2, 3)))[:, target]
saliency = resize_saliency(image, scores.view(1, 1, *x.shape[2:]).detach(), True, "bilinear")
write_png(overlay(scene.image, saliency[0, 0]), "recipro_cam_manual.png")
