"""Insertion and deletion of one image: does the score follow the map?

The pixels come, or go, in the map's order; a good map's curves rise, and fall, early.
"""

import torch
from matplotlib.figure import Figure

from saliency import grad_cam, gradient
from saliency.evaluation.metrics.faithfulness import curve_area, deletion, insertion
from saliency.scenes import make_scene, scene_network

model, scene = scene_network(), make_scene(9)
x, target = scene.image[None], scene.objects[0].label

figure = Figure(figsize=(7, 3), layout="constrained")
axes = figure.subplots(1, 2, sharey=True)
for method in (grad_cam, gradient):
    saliency_map = method(model, x, target, resize=True)
    for axis, metric in zip(axes, (insertion, deletion), strict=True):
        curve = metric(model, x, target, saliency_map, baseline="mean", activation=torch.sigmoid)
        axis.plot(curve[0], label=f"{method.__name__}, area {float(curve_area(curve)):.2f}")
        axis.set(title=metric.__name__, xlabel="pixels, in 1/32", ylabel="probability")
        axis.legend()
figure.savefig("insertion_deletion.png")
