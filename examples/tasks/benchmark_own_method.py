"""Benchmark your own method: two metrics, beside Grad-CAM and the centre point.

A method is any function ``(model, input, target, **options)`` that gives (N, K, h, w) for targets (N, K).
"""

from tempfile import TemporaryDirectory

from saliency import grad_cam, saliency
from saliency.evaluation.baselines import centre
from saliency.evaluation.datasets import load_dataset
from saliency.evaluation.explainers import Explainer
from saliency.evaluation.running.runner import run
from saliency.networks.models import load_network, preprocessing


def squares(x):
    return (x * x.grad).relu().square().sum(1, keepdim=True)


def mine(model, input, target, **options):
    return saliency(model, input, target, "layer4", gradient_to_saliency=squares, **options)


methods = {"mine": Explainer(mine, version="1"), "grad_cam": (grad_cam, {}), "centre": (centre, {})}
metrics = {"pointing_game": {}, "energy_pointing_game": {}}
with TemporaryDirectory() as folder:  # one that stays can be resumed, and has reports made of it
    scenes = load_dataset("scenes", scenes=8)
    print(run(scenes, load_network("scenes", "DEFAULT"), preprocessing("scenes"), methods, metrics, folder).table)
