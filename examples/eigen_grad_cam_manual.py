"""Eigen-Grad-CAM by hand: the first principal component of activation times gradient."""

import torch

from saliency import Probe, resize_saliency
from saliency.images import overlay, write_png
from saliency.scenes import make_scene, scene_network

model = scene_network()
scene = make_scene(1)
image, target = scene.image[None], scene.objects[0].label
with Probe(model.layer4, target="output") as probe:
    model(image)[0, target].backward(inputs=probe.data)
x, dx = probe.data[0].detach(), probe.data[0].grad
rows = (x * dx)[0].flatten(1).T
rows = rows - rows.mean(0)
cam = rows @ torch.linalg.svd(rows, full_matrices=False)[2][0]
cam = cam * (cam @ rows.square().sum(1)).sign()  # positive where the product is strong
saliency = resize_saliency(image, cam.view(1, 1, *x.shape[2:]), True, "bilinear")
write_png(overlay(scene.image, saliency[0, 0]), "eigen_grad_cam_manual.png")
