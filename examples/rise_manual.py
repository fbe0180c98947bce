"""RISE by hand: the mean of random masks, each weighted by the score of the masked image."""

import torch

from saliency import random_masks
from saliency.images import overlay, write_png
from saliency.scenes import make_scene, scene_network

model = scene_network()
scene = make_scene(1)
image, target = scene.image[None], scene.objects[0].label
masks = random_masks(500, image.shape[2:])
with torch.no_grad():
    scores = torch.cat([model(image * part).sigmoid()[:, target] for part in masks.split(50)])
saliency = (scores.view(-1, 1, 1, 1) * masks).mean(0, keepdim=True)
write_png(overlay(scene.image, saliency[0, 0]), "rise_manual.png")
