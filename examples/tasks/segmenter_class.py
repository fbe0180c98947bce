"""A segmenter's class: what does the network look at, where it says what it says?

The segmenter is made of the scenes' classifier, and answers as torchvision's do: {"out": scores at every place}.
"""

from torch import nn

from saliency import layer_cam
from saliency.images import overlay, write_png
from saliency.scenes import make_scene, scene_network
from saliency.targets import class_in_region


class Segmenter(nn.Sequential):
    """The scores of every class at every place of a 16 x 16 grid."""

    def forward(self, x):
        return {"out": fc(super().forward(x).movedim(1, 3)).movedim(3, 1)}


*body, _, fc = scene_network().children()
model, scene = Segmenter(*body), make_scene(9)
label = scene.objects[1].label
said = model(scene.image[None])["out"][0].argmax(0) == label  # where the class is the best one
saliency_map = layer_cam(model, scene.image[None], class_in_region(label, said), "4")
write_png(overlay(scene.image, saliency_map), "segmenter_class.png")
