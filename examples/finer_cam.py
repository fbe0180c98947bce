"""Finer-CAM in one call."""

from saliency import finer_cam
from saliency.images import overlay, write_png
from saliency.scenes import make_scene, scene_network

model = scene_network()
scene = make_scene(1)
image, target = scene.image[None], scene.objects[0].label
saliency = finer_cam(model, image, target, saliency_layer="layer4", resize=True)
write_png(overlay(scene.image, saliency[0, 0]), "finer_cam.png")
