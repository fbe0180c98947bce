"""Integrated gradients by hand: the mean gradient between black and the image, times their difference."""

from numpy.polynomial.legendre import leggauss

from saliency import Probe, imsmooth
from saliency.images import overlay, write_png
from saliency.scenes import make_scene, scene_network

model = scene_network()
scene = make_scene(1)
image, target = scene.image[None], scene.objects[0].label
mean = 0
for node, weight in zip(*leggauss(20), strict=True):  # on [-1, 1], where weights sum to 2
    with Probe(model, target="input") as probe:
        model((node + 1) / 2 * image)[0, target].backward(inputs=probe.data)
    mean += weight / 2 * probe.data[0].grad
saliency = (image * mean).sum(1, keepdim=True)
saliency = imsmooth(saliency, 0.02 * 128, padding_mode="replicate")
write_png(overlay(scene.image, saliency[0, 0]), "integrated_gradients_manual.png")
