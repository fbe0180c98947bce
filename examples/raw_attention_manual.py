"""Raw attention by hand: what the class token attends to in the last layer."""

from saliency import Probe, resize_saliency
from saliency.images import overlay, write_png
from saliency.scenes import make_scene, scene_network

model, scene = scene_network("vit"), make_scene(1)
image, target = scene.image[None], scene.objects[0].label
with Probe(model.blocks[-1].attn.qkv, target="output") as probe:
    model(image)
q, k, v = probe.data[0].unflatten(2, (3, 4, -1)).permute(2, 0, 3, 1, 4)  # 4 heads
relevance = (q @ k.mT / 4).softmax(-1).mean(1)[:, 0, 1:]
saliency = resize_saliency(image, relevance.detach().view(1, 1, 16, 16), True, "bilinear")
write_png(overlay(scene.image, saliency[0, 0]), "raw_attention_manual.png")
