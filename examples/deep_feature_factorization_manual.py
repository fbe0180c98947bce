"""Deep feature factorisation by hand: two non-negative factors of the layer's activation, updated in turn."""

import torch

from saliency import activation, resize_saliency
from saliency.images import overlay, write_png
from saliency.scenes import make_scene, scene_network

model, scene = scene_network(), make_scene(1)
image = scene.image[None]
x = activation(model, image, saliency_layer="layer4", reduction=None)
rows, draws = x[0].flatten(1).T, torch.Generator().manual_seed(0)
places, concepts = torch.rand(len(rows), 3, generator=draws), torch.rand(3, x.shape[1], generator=draws)
for _ in range(50):
    places *= (rows @ concepts.T) / (places @ (concepts @ concepts.T))
    concepts *= (places.T @ rows) / ((places.T @ places) @ concepts).clamp(min=1e-30)
places *= concepts.norm(dim=1)
strongest = places[:, places.norm(dim=0).argmax()].view(1, 1, *x.shape[2:])
saliency = resize_saliency(image, strongest, True, "bilinear")
write_png(overlay(scene.image, saliency[0, 0]), "deep_feature_factorization_manual.png")
