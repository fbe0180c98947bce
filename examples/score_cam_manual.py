"""Score-CAM by hand: the score of the image masked by every channel of the layer."""

import torch

from saliency import Probe, resize_saliency
from saliency.images import overlay, write_png
from saliency.scenes import make_scene, scene_network

model, scene = scene_network(), make_scene(1)
image, target = scene.image[None], scene.objects[0].label
with Probe(model.layer4, target="output") as probe, torch.no_grad():
    model(image)
channels = probe.data[0].detach()[0][:, None]
masks = resize_saliency(image, channels, True, "bilinear")
low, high = masks.amin((2, 3), keepdim=True), masks.amax((2, 3), keepdim=True)
with torch.no_grad():
    weights = model(image * (masks - low) / (high - low).clamp(min=1e-12))[:, target].softmax(0)
cam = (weights.view(-1, 1, 1, 1) * channels).sum(0, keepdim=True).relu()
saliency = resize_saliency(image, cam, True, "bilinear")
write_png(overlay(scene.image, saliency[0, 0]), "score_cam_manual.png")
