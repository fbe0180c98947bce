"""Eigen-Grad-CAM in one call."""

from saliency import eigen_grad_cam
from saliency.images import overlay, write_png
from saliency.scenes import make_scene, scene_network

model = scene_network()
scene = make_scene(1)
image, target = scene.image[None], scene.objects[0].label
saliency = eigen_grad_cam(model, image, target, saliency_layer="layer4", resize=True)
write_png(overlay(scene.image, saliency[0, 0]), "eigen_grad_cam.png")
