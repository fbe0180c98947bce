"""FullGrad in one call."""

from saliency import full_grad
from saliency.images import overlay, write_png
from saliency.scenes import make_scene, scene_network

model = scene_network()
scene = make_scene(1)
image, target = scene.image[None], scene.objects[0].label
saliency = full_grad(model, image, target)
write_png(overlay(scene.image, saliency[0, 0]), "full_grad.png")
