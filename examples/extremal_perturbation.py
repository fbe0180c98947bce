"""Extremal perturbation in one call: the smooth mask of a tenth of the image that keeps most of the score."""

from saliency import extremal_perturbation
from saliency.images import overlay, write_png
from saliency.scenes import make_scene, scene_network

model = scene_network()
scene = make_scene(1)
image, target = scene.image[None], scene.objects[0].label
saliency, energies = extremal_perturbation(model, image, target, areas=0.1, max_iter=50)
write_png(overlay(scene.image, saliency[0, 0]), "extremal_perturbation.png")
