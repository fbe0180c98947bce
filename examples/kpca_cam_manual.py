"""KPCA-CAM by hand: the first eigenvector of the centred kernel matrix of the layer's positions."""

import torch

from saliency import activation, resize_saliency
from saliency.images import overlay, write_png
from saliency.scenes import make_scene, scene_network

model, scene = scene_network(), make_scene(1)
image = scene.image[None]
x = activation(model, image, saliency_layer="layer4", reduction=None)
rows = x[0].flatten(1).T - x[0].flatten(1).mean(1)
kernel = torch.exp(-torch.cdist(rows, rows).square() / rows.shape[1])
kernel = kernel - kernel.mean(0) - kernel.mean(1)[:, None] + kernel.mean()
values, vectors = torch.linalg.eigh(kernel)
cam = vectors[:, -1] * values[-1].sqrt()
cam = cam * (cam @ rows.square().sum(1)).sign()  # positive where the activation is strong
saliency = resize_saliency(image, cam.view(1, 1, *x.shape[2:]), True, "bilinear")
write_png(overlay(scene.image, saliency[0, 0]), "kpca_cam_manual.png")
