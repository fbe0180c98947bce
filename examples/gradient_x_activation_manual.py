"""Gradient x activation by hand: a probe, a backward pass, the product, its sum over channels."""

from saliency import Probe, get_module, gradient_to_gradient_x_activation, resize_saliency, sum_channels
from saliency.images import overlay, write_png
from saliency.scenes import make_scene, scene_network

model = scene_network()
scene = make_scene(1)
image, target = scene.image[None], scene.objects[0].label
with Probe(get_module(model, "layer3"), target="output") as probe:
    model(image)[0, target].backward(inputs=probe.data)
saliency = sum_channels(gradient_to_gradient_x_activation(probe.data[0]))
saliency = resize_saliency(image, saliency, True, "bilinear")
write_png(overlay(scene.image, saliency[0, 0]), "gradient_x_activation_manual.png")
