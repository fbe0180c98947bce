"""Eigen-CAM by hand: the layer's positions, projected onto their first right singular vector."""

import torch

from saliency import activation, resize_saliency
from saliency.images import overlay, write_png
from saliency.scenes import make_scene, scene_network

model = scene_network()
scene = make_scene(1)
image = scene.image[None]
x = activation(model, image, saliency_layer="layer4", reduction=None)
rows = x[0].flatten(1).T
cam = rows @ torch.linalg.svd(rows, full_matrices=False)[2][0]
cam = (cam * cam.sum().sign()).view(1, 1, *x.shape[2:])  # no entry is negative behind a ReLU
saliency = resize_saliency(image, cam, True, "bilinear")
write_png(overlay(scene.image, saliency[0, 0]), "eigen_cam_manual.png")
