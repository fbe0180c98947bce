"""Occlusion in one call."""

from saliency import occlusion
from saliency.images import overlay, write_png
from saliency.scenes import make_scene, scene_network

model = scene_network()
scene = make_scene(1)
image, target = scene.image[None], scene.objects[0].label
saliency = occlusion(model, image, target, sliding_window_shapes=(3, 32, 32), strides=(3, 16, 16), resize=True)
write_png(overlay(scene.image, saliency[0, 0]), "occlusion.png")
