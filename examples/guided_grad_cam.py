"""Guided Grad-CAM in one call."""

from saliency import guided_grad_cam
from saliency.images import overlay, write_png
from saliency.scenes import make_scene, scene_network

model = scene_network()
scene = make_scene(1)
image, target = scene.image[None], scene.objects[0].label
saliency = guided_grad_cam(model, image, target, saliency_layer="layer4")
write_png(overlay(scene.image, saliency[0, 0]), "guided_grad_cam.png")
