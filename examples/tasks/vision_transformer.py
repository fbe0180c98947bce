"""A vision transformer: gradients and attention, with no layer named and no reshaping.

torchvision's, timm's and Hugging Face's are called the same way.
"""

from saliency import METHODS
from saliency.plot import contact_sheet
from saliency.scenes import CLASSES, make_scene, scene_network

model, scene = scene_network("vit"), make_scene(9)
x, target = scene.image[None], scene.objects[0].label

names = ["guided_backprop", "grad_cam", "attention_rollout", "transformer_attribution", "legrad", "grad_eclip"]
maps = {name: METHODS[name].function(model, x, target) for name in names}
contact_sheet([scene.image], maps, [CLASSES[target]], "vision_transformer.png")
