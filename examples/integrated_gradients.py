"""Integrated gradients in one call."""

from saliency import integrated_gradients
from saliency.images import overlay, write_png
from saliency.scenes import make_scene, scene_network

model = scene_network()
scene = make_scene(1)
image, target = scene.image[None], scene.objects[0].label
saliency = integrated_gradients(model, image, target, n_steps=20, smooth=0.02)
write_png(overlay(scene.image, saliency[0, 0]), "integrated_gradients.png")
