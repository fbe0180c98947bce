"""DeepLIFT SHAP in one call: the baselines are scenes without a star."""

import torch

from saliency import deep_lift_shap
from saliency.images import overlay, write_png
from saliency.scenes import make_scene, scene_network

model = scene_network()
scene = make_scene(1)
image, target = scene.image[None], scene.objects[0].label
baselines = torch.stack([make_scene(seed).image for seed in range(20, 25)])
saliency = deep_lift_shap(model, image, target, baselines=baselines, smooth=0.02)
write_png(overlay(scene.image, saliency[0, 0]), "deep_lift_shap.png")
