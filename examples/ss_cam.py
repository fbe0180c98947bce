"""SS-CAM in one call."""

from saliency import ss_cam
from saliency.images import overlay, write_png
from saliency.scenes import make_scene, scene_network

model = scene_network()
scene = make_scene(1)
image, target = scene.image[None], scene.objects[0].label
saliency = ss_cam(model, image, target, "layer4", num_samples=1, std=0.5, seed=0, resize=True)
write_png(overlay(scene.image, saliency[0, 0]), "ss_cam.png")
