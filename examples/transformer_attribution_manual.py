"""Transformer attribution by hand: the attention that raises the score, layer by layer."""

import torch

from saliency import Probe, resize_saliency
from saliency.images import overlay, write_png
from saliency.scenes import make_scene, scene_network

model, scene = scene_network("vit"), make_scene(1)
image, target = scene.image[None], scene.objects[0].label
probes = [(Probe(of.attn.qkv, target="output"), Probe(of.attn.proj)) for of in model.blocks]
model(image)[0, target].backward()
relevance = torch.eye(257)
for probe, result in probes:
    q, k, v = probe.data[0].unflatten(2, (3, 4, -1)).permute(2, 0, 3, 1, 4)  # 4 heads
    gradient = result.data[0].grad.unflatten(2, (4, -1)).transpose(1, 2) @ v.mT
    relevance = relevance + ((q @ k.mT / 4).softmax(-1) * gradient).relu().mean(1) @ relevance
relevance = relevance[:, 0, 1:]
saliency = resize_saliency(image, relevance.detach().view(1, 1, 16, 16), True, "bilinear")
write_png(overlay(scene.image, saliency[0, 0]), "transformer_attribution_manual.png")
