"""RISE in one call."""

from saliency import rise_class
from saliency.images import overlay, write_png
from saliency.scenes import make_scene, scene_network

model = scene_network()
scene = make_scene(1)
image, target = scene.image[None], scene.objects[0].label
saliency = rise_class(model, image, target, num_masks=500)
write_png(overlay(scene.image, saliency[0, 0]), "rise.png")
