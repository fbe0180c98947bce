"""Finer-CAM by hand: Grad-CAM of the score minus 0.6 of the mean of the three closest scores."""

from saliency import Probe, gradient_to_grad_cam_saliency, resize_saliency
from saliency.images import overlay, write_png
from saliency.scenes import make_scene, scene_network

model = scene_network()
scene = make_scene(1)
image, target = scene.image[None], scene.objects[0].label
with Probe(model.layer4, target="output") as probe:
    scores = model(image)[0]
    nearest = (scores - scores[target]).abs().argsort()[1:4]
    (scores[target] - 0.6 * scores[nearest].mean()).backward(inputs=probe.data)
saliency = resize_saliency(image, gradient_to_grad_cam_saliency(probe.data[0]), True, "bilinear")
write_png(overlay(scene.image, saliency[0, 0]), "finer_cam_manual.png")
