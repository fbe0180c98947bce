"""Contrastive excitation backprop by hand: what the classifier sends back, minus what its negation sends back."""

from saliency import ExcitationBackpropContext, Probe, resize_saliency
from saliency.images import overlay, write_png
from saliency.scenes import make_scene, scene_network

model = scene_network()
scene = make_scene(1)
image, target = scene.image[None], scene.objects[0].label
p = []
for _ in range(2):
    with ExcitationBackpropContext(), Probe(model.layer3, target="output") as probe:
        model(image)[0, target].backward(inputs=probe.data)
    p.append(probe.data[0].grad)
    model.fc.weight.data.neg_()  # the negated classifier; in the second pass, the classifier itself again
saliency = (p[0] - p[1]).sum(1, keepdim=True).relu()
saliency = resize_saliency(image, saliency, True, "bilinear")
write_png(overlay(scene.image, saliency[0, 0]), "contrastive_excitation_backprop_manual.png")
