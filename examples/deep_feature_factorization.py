"""Deep feature factorisation in one call."""

from saliency import deep_feature_factorization
from saliency.images import overlay, write_png
from saliency.scenes import make_scene, scene_network

model = scene_network()
scene = make_scene(1)
image = scene.image[None]
maps, concepts = deep_feature_factorization(model, image, "layer4", n_components=3, max_iter=50, resize=True)
saliency = maps[:, :1]  # of the strongest concept
write_png(overlay(scene.image, saliency[0, 0]), "deep_feature_factorization.png")
