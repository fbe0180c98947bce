"""The linear approximation by hand: a probe on the layer, a backward pass, the reduction."""

from saliency import Probe, get_module, gradient_to_linear_approx_saliency, resize_saliency
from saliency.images import overlay, write_png
from saliency.scenes import make_scene, scene_network

model = scene_network()
scene = make_scene(1)
image, target = scene.image[None], scene.objects[0].label
with Probe(get_module(model, "layer3"), target="output") as probe:
    model(image)[0, target].backward(inputs=probe.data)
saliency = gradient_to_linear_approx_saliency(probe.data[0])
saliency = resize_saliency(image, saliency, True, "bilinear")
write_png(overlay(scene.image, saliency[0, 0]), "linear_approx_manual.png")
