"""Extremal perturbation by hand: 50 steps on the parameters of a mask, for the score and an area of a tenth."""

import torch

from saliency import MaskGenerator, Perturbation
from saliency.images import overlay, write_png
from saliency.scenes import make_scene, scene_network

model, scene = scene_network(), make_scene(1)
generator, blur = MaskGenerator(scene.image.shape[1:], step=7, sigma=21), Perturbation(scene.image[None])
parameters, velocity = torch.ones(1, 1, *generator.shape_in, requires_grad=True), 0
for i in range(50):
    saliency, full = generator.generate(parameters)
    score = model(blur.apply(saliency).flip([3] * (i % 2 == 0)))[0, scene.objects[0].label]
    wanted = (torch.arange(full.numel()) >= int(full.numel() * (1 - 0.1))).float()
    area = (full.flatten().sort()[0] - wanted).square().mean() * 300 * 1.0035**i
    (gradient,) = torch.autograd.grad(score - area, parameters)
    velocity = gradient if i == 0 else 0.9 * velocity + 0.1 * gradient
    parameters = (parameters.detach() + 0.01 * velocity).clamp(0, 1).requires_grad_()
write_png(overlay(scene.image, saliency[0, 0].detach()), "extremal_perturbation_manual.png")
