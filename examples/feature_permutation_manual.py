"""Feature permutation by hand: patches of 4 x 4 positions are swapped between two images."""

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
patches = torch.arange(16).view(1, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
swapped = torch.where(patches == torch.arange(16).view(-1, 1, 1, 1), other, x)
drops = score - model.fc(swapped.mean((2, 3)))[:, target]
saliency = len(x) * drops[patches].detach()  # a patch's drop counts at all its positions, in all channels
saliency = resize_saliency(images[:1], saliency, True, "bilinear")
write_png(overlay(scene.image, saliency[0, 0]), "feature_permutation_manual.png")
