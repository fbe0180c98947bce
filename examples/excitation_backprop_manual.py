"""Excitation backprop by hand: inside the context, the backward pass sends winning probabilities."""

from saliency import ExcitationBackpropContext, Probe, gradient_to_excitation_backprop_saliency, resize_saliency
from saliency.images import overlay, write_png
from saliency.scenes import make_scene, scene_network

model = scene_network()
scene = make_scene(1)
image, target = scene.image[None], scene.objects[0].label
with ExcitationBackpropContext(), Probe(model.layer3, target="output") as probe:
    model(image)[0, target].backward(inputs=probe.data)
saliency = gradient_to_excitation_backprop_saliency(probe.data[0])
saliency = resize_saliency(image, saliency, True, "bilinear")
write_png(overlay(scene.image, saliency[0, 0]), "excitation_backprop_manual.png")
