"""GradientSHAP by hand: the mean gradient between scenes without a star and the image, times their difference."""

import torch

from saliency import Probe, imsmooth
from saliency.images import overlay, write_png
from saliency.scenes import make_scene, scene_network

model = scene_network()
scene = make_scene(1)
image, target = scene.image[None], scene.objects[0].label
draws, mean = torch.Generator().manual_seed(0), 0
alphas, seeds = torch.rand(20, generator=draws, dtype=torch.float64), torch.randint(20, 25, (20,), generator=draws)
for alpha, seed in zip(alphas.tolist(), seeds.tolist(), strict=True):
    way = image - make_scene(seed).image
    with Probe(model, target="input") as probe:
        model(image - (1 - alpha) * way)[0, target].backward(inputs=probe.data)
    mean += way * probe.data[0].grad / 20
saliency = imsmooth(mean.sum(1, keepdim=True), 0.02 * 128, padding_mode="replicate")
write_png(overlay(scene.image, saliency[0, 0]), "gradient_shap_manual.png")
