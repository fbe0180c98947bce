"""Guided backpropagation in one call."""

from saliency import guided_backprop
from saliency.images import overlay, write_png
from saliency.scenes import make_scene, scene_network

model = scene_network()
scene = make_scene(1)
image, target = scene.image[None], scene.objects[0].label
saliency = guided_backprop(model, image, target)
write_png(overlay(scene.image, saliency[0, 0]), "guided_backprop.png")
