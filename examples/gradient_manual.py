"""The gradient by hand: a probe at the input, a backward pass, the maximum over channels."""

from saliency import Probe, gradient_to_saliency
from saliency.images import overlay, write_png
from saliency.scenes import make_scene, scene_network

model = scene_network()
scene = make_scene(1)
image, target = scene.image[None], scene.objects[0].label
with Probe(model, target="input") as probe:
    model(image)[0, target].backward(inputs=probe.data)
saliency = gradient_to_saliency(probe.data[0])
write_png(overlay(scene.image, saliency[0, 0]), "gradient_manual.png")
