"""Gradient x attention by hand: the last layer's attention times the gradient of the score."""

from saliency import Probe, resize_saliency
from saliency.images import overlay, write_png
from saliency.scenes import make_scene, scene_network

model, scene = scene_network("vit"), make_scene(1)
image, target = scene.image[None], scene.objects[0].label
attention = model.blocks[-1].attn
with Probe(attention.qkv, target="output") as probe, Probe(attention.proj, target="input") as result:
    model(image)[0, target].backward(inputs=result.data)
q, k, v = probe.data[0].unflatten(2, (3, 4, -1)).permute(2, 0, 3, 1, 4)  # 4 heads
gradient = result.data[0].grad.unflatten(2, (4, -1)).transpose(1, 2) @ v.mT
relevance = ((q @ k.mT / 4).softmax(-1) * gradient).sum((1, 2))[:, 1:]
saliency = resize_saliency(image, relevance.detach().view(1, 1, 16, 16), True, "bilinear")
write_png(overlay(scene.image, saliency[0, 0]), "gradient_attention_manual.png")
