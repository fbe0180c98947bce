"""Layer-wise relevance propagation in one call."""

from saliency import lrp
from saliency.images import overlay, write_png
from saliency.scenes import make_scene, scene_network

model = scene_network()
scene = make_scene(1)
image, target = scene.image[None], scene.objects[0].label
saliency = lrp(model, image, target, rules="epsilon_plus")
write_png(overlay(scene.image, saliency[0, 0]), "lrp.png")
