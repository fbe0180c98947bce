"""FEM by hand: where channels exceed their mean by two standard deviations, weighted by that mean."""

from saliency import activation, resize_saliency
from saliency.images import overlay, write_png
from saliency.scenes import make_scene, scene_network

model = scene_network()
scene = make_scene(1)
image = scene.image[None]
x = activation(model, image, saliency_layer="layer4", reduction=None)
mean, deviation = x.mean((2, 3), keepdim=True), x.std((2, 3), correction=0, keepdim=True)
cam = (mean * (x > mean + 2 * deviation)).sum(1, keepdim=True)
saliency = resize_saliency(image, cam, True, "bilinear")
write_png(overlay(scene.image, saliency[0, 0]), "fem_manual.png")
