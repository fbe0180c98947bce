"""The linear approximation in one call."""

from saliency import linear_approx
from saliency.images import overlay, write_png
from saliency.scenes import make_scene, scene_network

model = scene_network()
scene = make_scene(1)
image, target = scene.image[None], scene.objects[0].label
saliency = linear_approx(model, image, target, saliency_layer="layer3", resize=True)
write_png(overlay(scene.image, saliency[0, 0]), "linear_approx.png")
