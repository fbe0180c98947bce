"""Smooth Grad-CAM++ in one call."""

from saliency import smooth_grad_cam_plus_plus
from saliency.images import overlay, write_png
from saliency.scenes import make_scene, scene_network

model = scene_network()
scene = make_scene(1)
image, target = scene.image[None], scene.objects[0].label
saliency = smooth_grad_cam_plus_plus(model, image, target, "layer4", n_samples=10, stdevs=0.1, resize=True)
write_png(overlay(scene.image, saliency[0, 0]), "smooth_grad_cam_plus_plus.png")
