"""Excitation backprop in one call."""

from saliency import excitation_backprop
from saliency.images import overlay, write_png
from saliency.scenes import make_scene, scene_network

model = scene_network()
scene = make_scene(1)
image, target = scene.image[None], scene.objects[0].label
saliency = excitation_backprop(model, image, target, saliency_layer="layer3", resize=True)
write_png(overlay(scene.image, saliency[0, 0]), "excitation_backprop.png")
