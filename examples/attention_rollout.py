"""Attention rollout in one call."""

from saliency import attention_rollout
from saliency.images import overlay, write_png
from saliency.scenes import make_scene, scene_network

model = scene_network("vit")
scene = make_scene(1)
image, target = scene.image[None], scene.objects[0].label
saliency = attention_rollout(model, image, target, resize=True)
write_png(overlay(scene.image, saliency[0, 0]), "attention_rollout.png")
