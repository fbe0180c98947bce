"""Guided Grad-CAM by hand: Grad-CAM's map times the guided gradient at the input."""

from saliency import GuidedBackpropContext, Probe, grad_cam, max_channels
from saliency.images import overlay, write_png
from saliency.scenes import make_scene, scene_network

model = scene_network()
scene = make_scene(1)
image, target = scene.image[None], scene.objects[0].label
cam = grad_cam(model, image, target, "layer4", resize=True)
with GuidedBackpropContext(), Probe(model, target="input") as probe:
    model(image)[0, target].backward(inputs=probe.data)
saliency = max_channels(cam * probe.data[0].grad)
write_png(overlay(scene.image, saliency[0, 0]), "guided_grad_cam_manual.png")
