"""IS-CAM by hand: the score of the image masked by every channel of the layer, at increasing mask strengths."""

import torch

from saliency import Probe, resize_saliency
from saliency.images import overlay, write_png
from saliency.scenes import make_scene, scene_network

model, scene = scene_network(), make_scene(1)
image, target = scene.image[None], scene.objects[0].label
with torch.no_grad(), Probe(model.layer4, target="output") as probe:
    model(image)
channels = probe.data[0].detach()[0][:, None]
masks = resize_saliency(image, channels, True, "bilinear")
masks = masks - masks.amin((2, 3), keepdim=True)
masks = masks / masks.amax((2, 3), keepdim=True).clamp(min=1e-12)
scores = sum(model(image * masks * t / 5)[:, target] / 5 for t in range(1, 6)).detach()
saliency = (scores.softmax(0).view(-1, 1, 1, 1) * channels).sum(0, keepdim=True).relu()
saliency = resize_saliency(image, saliency, True, "bilinear")
write_png(overlay(scene.image, saliency[0, 0]), "is_cam_manual.png")
