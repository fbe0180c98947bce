"""Layer-wise relevance propagation by hand: x times the gradient that a table of rules sends back."""

import torch

from saliency import RelevanceContext, rules, sum_channels
from saliency.images import overlay, write_png
from saliency.scenes import make_scene, scene_network

model = scene_network()
scene = make_scene(1)
image, target = scene.image[None].requires_grad_(), scene.objects[0].label
with RelevanceContext(rules.epsilon_plus()) as context:
    score = model(image)[0, target]
    (gradient,) = context.send_back(score, torch.ones_like(score), [image], retain=False)
saliency = sum_channels(image.detach() * gradient)
write_png(overlay(scene.image, saliency[0, 0]), "lrp_manual.png")
