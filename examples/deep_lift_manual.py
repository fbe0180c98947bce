"""DeepLIFT by hand: ReLU sends back ratios of differences between the image and black, which run side by side."""

import torch

from saliency import Probe, Rule, RuleContext, imsmooth
from saliency.images import overlay, write_png
from saliency.scenes import make_scene, scene_network

model, scene = scene_network(), make_scene(1)


def rescale(op, gradient):
    (x, x0), (y, y0) = op.tensors[0], op.run(op.tensors[0])
    return gradient * torch.where((x - x0).abs() < 1e-10, x > 0, (y - y0) / (x - x0))


with Probe(model) as probe, RuleContext({torch.nn.functional.relu: Rule(rescale)}):
    model(torch.stack([scene.image, 0 * scene.image]))[0, scene.objects[0].label].backward(inputs=probe.data)
saliency = imsmooth((scene.image * probe.data[0].grad[:1]).sum(1, keepdim=True), 2.56, padding_mode="replicate")
write_png(overlay(scene.image, saliency[0, 0]), "deep_lift_manual.png")
