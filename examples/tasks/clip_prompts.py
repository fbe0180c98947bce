"""CLIP prompts: what in the image is like each text?

A zero-shot classifier's weights are the embeddings of its prompts. So a network without its head stands for the image
encoder here, and rows of the head for ``clip.get_text_features(...)``; with CLIP, ``encoder = ImageEncoder(clip)``.
"""

from torch import nn

from saliency import cosine_similarity, grad_cam
from saliency.plot import contact_sheet
from saliency.scenes import CLASSES, make_scene, scene_network

encoder, scene = scene_network(), make_scene(9)
texts = encoder.fc.weight.detach()  # (8 prompts, 80)
encoder.fc = nn.Identity()

labels = [item.label for item in scene.objects]
maps = grad_cam(encoder, scene.image[None], cosine_similarity(texts[labels]), "layer4")  # (1, K, h, w): one pass
shown = {f"a photo of a {CLASSES[label]}": maps[:, k] for k, label in enumerate(labels)}
contact_sheet([scene.image], shown, [], "clip_prompts.png")
