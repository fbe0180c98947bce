"""DeepLIFT in one call: the contribution of each pixel's difference from black."""

from saliency import deep_lift
from saliency.images import overlay, write_png
from saliency.scenes import make_scene, scene_network

model = scene_network()
scene = make_scene(1)
image, target = scene.image[None], scene.objects[0].label
saliency = deep_lift(model, image, target, smooth=0.02)
write_png(overlay(scene.image, saliency[0, 0]), "deep_lift.png")
