"""Feature permutation by hand: each channel is swapped between two images."""

import torch

from saliency import Probe, resize_saliency
from saliency.images import overlay, write_png
from saliency.scenes import make_scene, scene_network

model = scene_network()
scene = make_scene(1)
images, target = torch.stack([scene.image, make_scene(2).image]), scene.objects[0].label
with Probe(model.layer4, target="output") as probe, torch.no_grad():
    score = model(images)[0, target]
x, other = probe.data[0].detach()
swapped = torch.where(torch.eye(len(x), dtype=torch.bool)[:, :, None, None], other, x)
drops = score - model.fc(swapped.mean((2, 3)))[:, target]
saliency = drops.sum().expand(1, 1, *x.shape[1:]).detach()  # a channel's drop counts at all its positions
saliency = resize_saliency(images[:1], saliency, True, "bilinear")
write_png(overlay(scene.image, saliency[0, 0]), "feature_permutation_manual.png")
