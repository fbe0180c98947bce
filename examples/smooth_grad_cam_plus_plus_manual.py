"""Smooth Grad-CAM++ by hand: Grad-CAM++ of the mean powers of the gradient over noisy images."""

import torch

from saliency import Probe, activation, resize_saliency
from saliency.images import overlay, write_png
from saliency.scenes import make_scene, scene_network

model, scene = scene_network(), make_scene(1)
image, target = scene.image[None], scene.objects[0].label
noise, powers = torch.Generator().manual_seed(1), 0  # the draws of seed=0
for _ in range(10):
    with Probe(model.layer4, target="output") as probe:
        model(image + 0.1 * torch.randn(image.shape, generator=noise))[0, target].backward(inputs=probe.data)
    powers += torch.stack([probe.data[0].grad ** power / 10 for power in (1, 2, 3)])
x = activation(model, image, saliency_layer="layer4", reduction=None)
alpha = powers[1] / (2 * powers[1] + powers[2] * x.sum((2, 3), keepdim=True)).clamp(min=1e-30)
cam = (x * (alpha * powers[0].relu()).sum((2, 3), keepdim=True)).sum(1, keepdim=True).relu()
saliency = resize_saliency(image, cam, True, "bilinear")
write_png(overlay(scene.image, saliency[0, 0]), "smooth_grad_cam_plus_plus_manual.png")
