"""FullGrad by hand: the gradient times the image, and times the bias of every batch norm, added up."""

from saliency import Probe, resize_saliency
from saliency.images import overlay, write_png
from saliency.scenes import make_scene, scene_network

model, scene = scene_network(), make_scene(1)
image, target = scene.image[None], scene.objects[0].label
norms = [module for name, module in model.named_modules() if type(module).__name__ == "BatchNorm2d"]
probes = [Probe(model, target="input"), *(Probe(norm, target="output") for norm in norms)]
scores = model(image)
scores[0, target].backward(inputs=[probe.data[0] for probe in probes])
biases = [norm.bias - norm.running_mean * norm.weight / (norm.running_var + norm.eps).sqrt() for norm in norms]
saliency = 0
for factor, probe in zip([image, *(bias.view(-1, 1, 1) for bias in biases)], probes, strict=True):
    values = (factor * probe.data[0].grad).abs().detach()
    values = values - values.amin((2, 3), keepdim=True)
    values = values / values.amax((2, 3), keepdim=True).clamp(min=1e-30)
    saliency = saliency + resize_saliency(image, values, True, "bilinear").sum(1, keepdim=True)
write_png(overlay(scene.image, saliency[0, 0]), "full_grad_manual.png")
