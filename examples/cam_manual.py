"""CAM by hand: the layer's channels, weighted by the classifier that reads their means."""

from saliency import activation, resize_saliency
from saliency.images import overlay, write_png
from saliency.scenes import make_scene, scene_network

model = scene_network()
scene = make_scene(1)
image, target = scene.image[None], scene.objects[0].label
x = activation(model, image, saliency_layer="layer4", reduction=None)
weights = model.fc.weight.detach()[target].view(1, -1, 1, 1)
cam = (weights * x).sum(1, keepdim=True)
saliency = resize_saliency(image, cam, True, "bilinear")
write_png(overlay(scene.image, saliency[0, 0]), "cam_manual.png")
