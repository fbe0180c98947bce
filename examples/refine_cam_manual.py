"""RefineCAM by hand: the product of the Grad-CAM++ maps of several layers, each divided by its maximum."""

from saliency import grad_cam_plus_plus, resize_saliency
from saliency.images import overlay, write_png
from saliency.scenes import make_scene, scene_network

model = scene_network()
scene = make_scene(1)
image, target = scene.image[None], scene.objects[0].label
maps = grad_cam_plus_plus(model, image, target, ["layer2", "layer3", "layer4"])
largest = max(maps, key=lambda each: each.numel())
saliency = 1
for each in maps:
    saliency = saliency * resize_saliency(largest, each / each.max(), True, "bilinear")
saliency = resize_saliency(image, saliency, True, "bilinear")
write_png(overlay(scene.image, saliency[0, 0]), "refine_cam_manual.png")
