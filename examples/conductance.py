"""Conductance in one call."""

from saliency import conductance
from saliency.images import overlay, write_png
from saliency.scenes import make_scene, scene_network

model = scene_network()
scene = make_scene(1)
image, target = scene.image[None], scene.objects[0].label
saliency = conductance(model, image, target, "layer4", n_steps=20, method="riemann_trapezoid", resize=True)
write_png(overlay(scene.image, saliency[0, 0]), "conductance.png")
