"""Debug a wrong prediction: what speaks for the class that it says, against the one that is there?

Two crescents, and the network says ring. The map of the difference of both scores is signed: red speaks for the ring,
blue for the crescent; the map of the ring's own score shows what both classes have in common, too.
"""

from saliency import hires_cam, sum_channels
from saliency.plot import contact_sheet
from saliency.scenes import CLASSES, make_scene, scene_network

model, scene = scene_network(), make_scene(560)
x, there = scene.image[None], scene.objects[0].label
said = int(model(x).argmax())
print(f"It says {CLASSES[said]}; it is a {CLASSES[there]}.")

maps = {
    CLASSES[said]: hires_cam(model, x, said, "layer4"),
    CLASSES[there]: hires_cam(model, x, there, "layer4"),
    "difference": hires_cam(model, x, lambda o: o[:, said] - o[:, there], "layer4", reduction=sum_channels),
}
contact_sheet([scene.image], maps, [], "wrong_prediction.png")
