"""ShapleyCAM by hand: Grad-CAM of the gradient minus half of the Hessian times the activation."""

import torch

from saliency import Probe, gradient_to_grad_cam_saliency, resize_saliency
from saliency.images import overlay, write_png
from saliency.scenes import make_scene, scene_network

model = scene_network()
scene = make_scene(1)
image, target = scene.image[None], scene.objects[0].label
with Probe(model.layer3, target="output") as probe:
    scores = model(image)
(x,) = probe.data
score = (scores + scores.log_softmax(1))[0, target]
(dx,) = torch.autograd.grad(score, x, create_graph=True)
(product,) = torch.autograd.grad(dx, x, x.detach())
x.grad = dx.detach() - product / 2
saliency = resize_saliency(image, gradient_to_grad_cam_saliency(x), True, "bilinear")
write_png(overlay(scene.image, saliency[0, 0]), "shapley_cam_manual.png")
