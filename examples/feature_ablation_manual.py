"""Feature ablation by hand: the network behind the layer, with one entry of the activation set to 0 at a time."""

from saliency import Probe, resize_saliency
from saliency.images import overlay, write_png
from saliency.scenes import make_scene, scene_network

model = scene_network()
scene = make_scene(1)
image, target = scene.image[None], scene.objects[0].label
with Probe(model.layer4, target="output") as probe:
    score = model(image)[0, target]
x = probe.data[0].detach()
without = x.flatten().repeat(x.numel(), 1).fill_diagonal_(0).view(-1, *x.shape[1:])
drops = score - model.fc(without.mean((2, 3)))[:, target]
saliency = resize_saliency(image, drops.view_as(x).sum(1, keepdim=True).detach(), True, "bilinear")
write_png(overlay(scene.image, saliency[0, 0]), "feature_ablation_manual.png")
