"""SmoothGrad by hand: the mean gradient over noisy images, and its maximum over channels."""

import torch

from saliency import Probe, max_channels
from saliency.images import overlay, write_png
from saliency.scenes import make_scene, scene_network

model = scene_network()
scene = make_scene(1)
image, target = scene.image[None], scene.objects[0].label
noise = torch.Generator().manual_seed(1)  # the draws of seed=0
mean = 0
for _ in range(20):
    with Probe(model, target="input") as probe:
        model(image + 0.1 * torch.randn(image.shape, generator=noise))[0, target].backward(inputs=probe.data)
    mean += probe.data[0].grad / 20
saliency = max_channels(mean)
write_png(overlay(scene.image, saliency[0, 0]), "smooth_gradient_manual.png")
