"""Grad-ECLIP by hand: values weighted by the gradient and by the similarity of query and key."""

from torch.nn.functional import cosine_similarity

from saliency import Probe, resize_saliency
from saliency.images import overlay, write_png
from saliency.scenes import make_scene, scene_network

model, scene = scene_network("vit"), make_scene(4)
image, target = scene.image[None], scene.objects[0].label
attention = model.blocks[-1].attn
with Probe(attention.qkv, target="output") as probe, Probe(attention.proj, target="input") as result:
    model(image)[0, target].backward(inputs=result.data)
q, k, v = probe.data[0].chunk(3, 2)
alike = cosine_similarity(q[:, :1], k[:, 1:], dim=2)
alike = (alike - alike.min()) / (alike.max() - alike.min())
relevance = (alike * (result.data[0].grad[:, :1] * v[:, 1:]).sum(2)).relu()
saliency = resize_saliency(image, relevance.detach().view(1, 1, 16, 16), True, "bilinear")
write_png(overlay(scene.image, saliency[0, 0]), "grad_eclip_manual.png")
