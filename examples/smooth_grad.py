"""SmoothGrad in one call: any method, averaged over noise."""

from saliency import gradient, smooth_grad
from saliency.images import overlay, write_png
from saliency.scenes import make_scene, scene_network

model = scene_network()
scene = make_scene(1)
image, target = scene.image[None], scene.objects[0].label
saliency = smooth_grad(gradient, n_samples=10, sigma=0.1)(model, image, target)
write_png(overlay(scene.image, saliency[0, 0]), "smooth_grad.png")
