"""SmoothGrad by hand: the mean of the maps of noisy images."""

import torch

from saliency import gradient
from saliency.images import overlay, write_png
from saliency.scenes import make_scene, scene_network

model = scene_network()
scene = make_scene(1)
image, target = scene.image[None], scene.objects[0].label
noise = torch.Generator().manual_seed(0)
spread = 0.1 * (image.max() - image.min())
noisy = [image + spread * torch.randn(image.shape, generator=noise) for _ in range(10)]
saliency = torch.stack([gradient(model, sample, target) for sample in noisy]).mean(0)
write_png(overlay(scene.image, saliency[0, 0]), "smooth_grad_manual.png")
