"""Conductance by hand: the gradient at each step towards the image, times the change of the activation in that step."""

from itertools import pairwise

from saliency import Probe, resize_saliency
from saliency.images import overlay, write_png
from saliency.scenes import make_scene, scene_network

model = scene_network()
scene = make_scene(1)
image, target = scene.image[None], scene.objects[0].label
steps = []
for step in range(21):
    with Probe(model.layer4, target="output") as probe:
        model(step / 20 * image)[0, target].backward(inputs=probe.data)
    steps.append(probe.data[0])
flow = sum(start.grad * (end - start) for start, end in pairwise(steps))
saliency = resize_saliency(image, flow.sum(1, keepdim=True).detach(), True, "bilinear")
write_png(overlay(scene.image, saliency[0, 0]), "conductance_manual.png")
