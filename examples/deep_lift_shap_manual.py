"""DeepLIFT SHAP by hand: the mean of DeepLIFT from each of five scenes without a star."""

from saliency import deep_lift, imsmooth
from saliency.images import overlay, write_png
from saliency.scenes import make_scene, scene_network

model = scene_network()
scene = make_scene(1)
image, target = scene.image[None], scene.objects[0].label
mean = 0
for seed in range(20, 25):
    mean += deep_lift(model, image, target, baselines=make_scene(seed).image[None], reduction=None) / 5
saliency = imsmooth(mean.sum(1, keepdim=True), 0.02 * 128, padding_mode="replicate")
write_png(overlay(scene.image, saliency[0, 0]), "deep_lift_shap_manual.png")
