"""Attention rollout by hand: the product of all layers' attention, each averaged with the identity."""

import torch

from saliency import Probe, resize_saliency
from saliency.images import overlay, write_png
from saliency.scenes import make_scene, scene_network

model, scene = scene_network("vit"), make_scene(1)
image, target = scene.image[None], scene.objects[0].label
probes = [Probe(block.attn.qkv, target="output") for block in model.blocks]
model(image)
rollout = torch.eye(257)
for probe in probes:
    q, k, v = probe.data[0].unflatten(2, (3, 4, -1)).permute(2, 0, 3, 1, 4)  # 4 heads
    rollout = ((q @ k.mT / 4).softmax(-1).mean(1) + torch.eye(257)) / 2 @ rollout
relevance = rollout[:, 0, 1:]
saliency = resize_saliency(image, relevance.detach().view(1, 1, 16, 16), True, "bilinear")
write_png(overlay(scene.image, saliency[0, 0]), "attention_rollout_manual.png")
