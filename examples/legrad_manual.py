"""LeGrad by hand: the gradient of each layer's attention, for the head's score of that layer's tokens."""

import torch

from saliency import Probe, resize_saliency
from saliency.images import overlay, write_png
from saliency.scenes import make_scene, scene_network

model, scene = scene_network("vit"), make_scene(1)
image, target = scene.image[None], scene.objects[0].label
probes = [[Probe(of.attn.qkv, target="output"), Probe(of.attn.proj), Probe(of, target="output")] for of in model.blocks]
model(image)
relevance = torch.zeros(1, 257)
for probe, result, tokens in probes:
    score = model.head(model.norm(tokens.data[0]))[0, 0, target]
    (gradient,) = torch.autograd.grad(score, result.data, retain_graph=True)
    q, k, v = probe.data[0].unflatten(2, (3, 4, -1)).permute(2, 0, 3, 1, 4)  # 4 heads
    relevance += (gradient.unflatten(2, (4, -1)).transpose(1, 2) @ v.mT).relu().mean((1, 2)).detach() / 4
saliency = resize_saliency(image, relevance[:, 1:].view(1, 1, 16, 16), True, "bilinear")
write_png(overlay(scene.image, saliency[0, 0]), "legrad_manual.png")
