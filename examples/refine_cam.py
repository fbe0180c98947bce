"""RefineCAM in one call."""

from saliency import refine_cam
from saliency.images import overlay, write_png
from saliency.scenes import make_scene, scene_network

model = scene_network()
scene = make_scene(1)
image, target = scene.image[None], scene.objects[0].label
saliency = refine_cam(model, image, target, ["layer2", "layer3", "layer4"], resize=True)
write_png(overlay(scene.image, saliency[0, 0]), "refine_cam.png")
