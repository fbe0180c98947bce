"""FEM in one call."""

from saliency import fem
from saliency.images import overlay, write_png
from saliency.scenes import make_scene, scene_network

model = scene_network()
scene = make_scene(1)
image = scene.image[None]
saliency = fem(model, image, saliency_layer="layer4", resize=True)
write_png(overlay(scene.image, saliency[0, 0]), "fem.png")
