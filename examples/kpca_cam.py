"""KPCA-CAM in one call."""

from saliency import kpca_cam
from saliency.images import overlay, write_png
from saliency.scenes import make_scene, scene_network

model = scene_network()
scene = make_scene(1)
image = scene.image[None]
saliency = kpca_cam(model, image, saliency_layer="layer4", kernel="rbf", resize=True)
write_png(overlay(scene.image, saliency[0, 0]), "kpca_cam.png")
