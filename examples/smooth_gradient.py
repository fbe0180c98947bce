"""SmoothGrad in one call: the gradient, averaged over noise."""

from saliency import smooth_gradient
from saliency.images import overlay, write_png
from saliency.scenes import make_scene, scene_network

model = scene_network()
scene = make_scene(1)
image, target = scene.image[None], scene.objects[0].label
saliency = smooth_gradient(model, image, target, n_samples=20, stdevs=0.1)
write_png(overlay(scene.image, saliency[0, 0]), "smooth_gradient.png")
