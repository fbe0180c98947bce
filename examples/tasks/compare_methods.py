"""Compare methods: several of them on one image, from one forward pass."""

from saliency import grad_cam, gradient, guided_backprop, integrated_gradients, layer_cam, shared_forward
from saliency.plot import contact_sheet
from saliency.scenes import CLASSES, make_scene, scene_network

model, scene = scene_network(), make_scene(9)
x, target = scene.image[None], scene.objects[0].label

shared = shared_forward(model, x, ["", "layer3", "layer4"])
maps = {
    "gradient": gradient(model, x, target, shared=shared, smooth=0.02),
    "guided_backprop": guided_backprop(model, x, target, shared=shared, smooth=0.02),
    "grad_cam": grad_cam(model, x, target, "layer4", shared=shared),
    "layer_cam, layer3": layer_cam(model, x, target, "layer3", shared=shared),
    "integrated_gradients": integrated_gradients(model, x, target, n_steps=20, smooth=0.02),  # its own passes
}
contact_sheet([scene.image], maps, [CLASSES[target]], "compare_methods.png")
