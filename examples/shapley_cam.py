"""ShapleyCAM in one call."""

from saliency import shapley_cam
from saliency.images import overlay, write_png
from saliency.scenes import make_scene, scene_network

model = scene_network()
scene = make_scene(1)
image, target = scene.image[None], scene.objects[0].label
saliency = shapley_cam(model, image, lambda y: (y + y.log_softmax(1))[:, target], "layer3", resize=True)
write_png(overlay(scene.image, saliency[0, 0]), "shapley_cam.png")
