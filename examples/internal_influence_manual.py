"""Internal influence by hand: the mean gradient at a layer over fading images; then the maximum over channels."""

from numpy.polynomial.legendre import leggauss

from saliency import Probe, max_channels, resize_saliency
from saliency.images import overlay, write_png
from saliency.scenes import make_scene, scene_network

model = scene_network()
scene = make_scene(1)
image, target = scene.image[None], scene.objects[0].label
mean = 0
for node, weight in zip(*leggauss(20), strict=True):  # on [-1, 1], where weights sum to 2
    with Probe(model.layer3, target="output") as probe:
        model((node + 1) / 2 * image)[0, target].backward(inputs=probe.data)
    mean += weight / 2 * probe.data[0].grad
saliency = resize_saliency(image, max_channels(mean), True, "bilinear")
write_png(overlay(scene.image, saliency[0, 0]), "internal_influence_manual.png")
