"""LayerCAM of several layers in one call."""

from saliency import fused, layer_cam
from saliency.images import overlay, write_png
from saliency.scenes import make_scene, scene_network

model = scene_network()
scene = make_scene(1)
image, target = scene.image[None], scene.objects[0].label
layers = ["layer2", "layer3", "layer4"]
saliency = fused(layer_cam, "max")(model, image, target, layers, resize=True)
write_png(overlay(scene.image, saliency[0, 0]), "fused.png")
