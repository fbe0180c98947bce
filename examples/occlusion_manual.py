"""Occlusion by hand: how far the score falls behind each window, averaged over the windows that hide a pixel."""

import torch

from saliency.images import overlay, write_png
from saliency.scenes import make_scene, scene_network

model = scene_network()
scene = make_scene(1)
image, target = scene.image[None], scene.objects[0].label
saliency, covered = torch.zeros(1, 1, 128, 128), torch.zeros(1, 1, 128, 128)
for top in range(0, 97, 16):
    for left in range(0, 97, 16):
        window = torch.zeros(1, 1, 128, 128)
        window[:, :, top : top + 32, left : left + 32] = 1
        drop = model(image)[0, target] - model(image * (1 - window))[0, target]
        saliency, covered = saliency + 3 * drop.detach() * window, covered + window
saliency = saliency / covered  # summed over the three channels
write_png(overlay(scene.image, saliency[0, 0]), "occlusion_manual.png")
