"""Internal influence in one call: the largest mean gradient at each position of a layer."""

from saliency import internal_influence, max_channels
from saliency.images import overlay, write_png
from saliency.scenes import make_scene, scene_network

model = scene_network()
scene = make_scene(1)
image, target = scene.image[None], scene.objects[0].label
saliency = internal_influence(model, image, target, "layer3", n_steps=20, reduction=max_channels, resize=True)
write_png(overlay(scene.image, saliency[0, 0]), "internal_influence.png")
