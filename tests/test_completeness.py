"""Completeness: what path methods and DeepLIFT share out sums to the change of the score, on torchvision's networks.

Relative to the sum of the absolute attribution, at 50 steps. A transformer is smooth, and Gauss and Legendre's error
vanishes. The gradient of a ReLU network jumps at every kink on the way: the error is that of many jumps between nodes,
falls about as 1/n, and depends on network, image and layer. Integrated gradients at the input miss under 0.1 % on
photographs and trained ResNets, MobileNet v2 and SqueezeNet as they are; at MobileNet v2's inner layers up to 0.5.
Untrained, with statistics of one batch of photographs, they miss at the input on average 0.03 to 0.12 % on ResNet-18,
0.01 to 0.08 on MobileNet v3 (uniform noise: 0.5 to 0.7), 0.2 to 0.9 on DenseNet-121, 0.3 to 1.2 on ResNet-50;
conductance 0.9 to 2.8 % at ResNet's ``layer3``, 3.4 to 3.8 at DenseNet's last, 0.4 to 0.9 inside MobileNet v3. Captum
misses the same (tests/parity/test_completeness_peers.py): the limits below are of cases that keep them, not of all.
DeepLIFT has no steps, and misses nothing but rounding.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models import SwinTransformer, VisionTransformer

import saliency
from saliency.evaluation.datasets import load_dataset

CLASSES = [1, 4, 7]


def _named(name: str, **options: object) -> Callable[[], nn.Module]:
    return lambda: torchvision.models.get_model(name, weights=None, num_classes=10, **options)


class Network(NamedTuple):
    """A network, its image's size, and layers that every way to the score crosses."""

    build: Callable[[], nn.Module]
    size: int
    layers: tuple[str, ...]


SMOOTH = {
    "vit": Network(
        lambda: VisionTransformer(32, 8, 4, 4, 64, 128, num_classes=10),
        32,
        ("encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_2"),
    ),
    "swin": Network(
        lambda: SwinTransformer([4, 4], 24, [2, 2, 2], [2, 4, 8], [4, 4], num_classes=10),
        32,
        ("features.1", "features.3"),
    ),
}
CONVOLUTIONAL = {
    "resnet18": Network(_named("resnet18"), 128, ("layer3",)),
    "densenet121": Network(_named("densenet121"), 64, ("features.denseblock4",)),
    "mobilenet_v3_small": Network(_named("mobilenet_v3_small"), 64, ("features.4", "features.8")),
}
NETWORKS = SMOOTH | CONVOLUTIONAL


@cache
def calibrated(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    return prepared(NETWORKS[name])


def prepared(network: Network) -> tuple[nn.Module, Tensor, Tensor]:
    """The model in evaluation mode, whose batch norms have the statistics of a batch; an image of it, and another."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = network.build().double().requires_grad_(False)
        for module in model.modules():
            if isinstance(module, nn.Linear) and not module.weight.any():  # a classifier that starts at 0
                nn.init.normal_(module.weight, std=0.05)
    size = network.size
    batch = torch.randn(8, 3, size, size, generator=torch.Generator().manual_seed(1)).double()
    for module in model.eval().modules():
        if isinstance(module, _BatchNorm):
            module.momentum = None  # the mean over all batches: one
            module.reset_running_stats()
            module.train()
    with torch.no_grad():
        model(batch)
    return model.eval(), batch[:1], batch[1:2]


def missed(name: str, attribution: Tensor, start: Tensor) -> Tensor:
    """By class, what attributions (1, K, ...) miss of the change of the score."""
    model, input, _ = calibrated(name)
    change = (model(input) - model(start))[0, CLASSES]
    flat = attribution[0].flatten(1)
    return (flat.sum(1) - change).abs() / flat.abs().sum(1)


def explain(name: str, method: str, layer: str, start: Tensor, n_steps: int) -> Tensor:
    model, input, _ = calibrated(name)
    options = {"n_steps": n_steps, "internal_batch_size": 10, "reduction": None}
    return getattr(saliency, method)(model, input, [CLASSES], layer, start, **options)


@pytest.mark.parametrize("name", [*SMOOTH, "mobilenet_v3_small"])
def test_integrated_gradients_at_the_input_miss_less_than_a_thousandth(name):
    start = torch.zeros_like(calibrated(name)[1])
    assert float(missed(name, explain(name, "integrated_gradients", "", start, 50), start).max()) < 1e-3


@pytest.mark.parametrize(("name", "layer"), [(name, layer) for name, of in NETWORKS.items() for layer in of.layers])
def test_integrated_gradients_at_a_layer_miss_less_than_a_thousandth(name, layer):
    start = torch.zeros_like(calibrated(name)[1])
    assert float(missed(name, explain(name, "integrated_gradients", layer, start, 50), start).max()) < 1e-3


@pytest.mark.parametrize(
    ("name", "layer"),
    [("resnet18", "layer3"), ("mobilenet_v3_small", "features.4"), ("mobilenet_v3_small", "features.8")],
)
def test_conductance_misses_less_than_a_hundredth(name, layer):
    start = torch.zeros_like(calibrated(name)[1])
    assert float(missed(name, explain(name, "conductance", layer, start, 50), start).max()) < 1e-2


@pytest.mark.parametrize(("name", "layer"), [(name, layer) for name, of in SMOOTH.items() for layer in of.layers])
def test_what_conductance_misses_falls_as_one_over_the_steps(name, layer):
    """Its gradients stand at the left end of every step: four times the steps, a quarter of the error."""
    _, _, start = calibrated(name)
    few, many = (missed(name, explain(name, "conductance", layer, start, n), start).mean() for n in (50, 200))
    assert float(few) < 1e-2
    assert 3 < float(few / many) < 5


DEEP_FEATURES = ("features.3", "features.6", "features.8")
STAGES = ("layer1", "layer2", "layer3")
# The smallest network of each convolutional family, its image's size, and three layers that every way crosses.
FAMILIES = {
    "alexnet": Network(_named("alexnet"), 64, DEEP_FEATURES),
    "convnext_tiny": Network(_named("convnext_tiny"), 32, ("features.1", "features.3", "features.5")),
    "densenet121": Network(_named("densenet121"), 32, tuple(f"features.denseblock{i}" for i in (1, 2, 3))),
    "efficientnet_b0": Network(_named("efficientnet_b0"), 32, DEEP_FEATURES),
    "efficientnet_v2_s": Network(_named("efficientnet_v2_s"), 32, ("features.3", "features.5", "features.7")),
    "googlenet": Network(_named("googlenet", init_weights=False), 64, ("inception3a", "inception4a", "inception5a")),
    "inception_v3": Network(_named("inception_v3", init_weights=False), 75, ("Mixed_5b", "Mixed_6a", "Mixed_7a")),
    "mnasnet0_5": Network(_named("mnasnet0_5"), 32, ("layers.5", "layers.9", "layers.13")),
    "mobilenet_v2": Network(_named("mobilenet_v2"), 32, DEEP_FEATURES),
    "mobilenet_v3_small": Network(_named("mobilenet_v3_small"), 32, DEEP_FEATURES),
    "regnet_x_400mf": Network(_named("regnet_x_400mf"), 32, tuple(f"trunk_output.block{i}" for i in (1, 2, 3))),
    "regnet_y_400mf": Network(_named("regnet_y_400mf"), 32, tuple(f"trunk_output.block{i}" for i in (1, 2, 3))),
    "resnet18": Network(_named("resnet18"), 32, STAGES),
    "resnext50_32x4d": Network(_named("resnext50_32x4d"), 32, STAGES),
    "shufflenet_v2_x0_5": Network(_named("shufflenet_v2_x0_5"), 32, ("stage2", "stage3", "stage4")),
    "squeezenet1_1": Network(_named("squeezenet1_1"), 32, DEEP_FEATURES),
    "vgg11_bn": Network(_named("vgg11_bn"), 32, ("features.4", "features.11", "features.18")),
    "wide_resnet50_2": Network(_named("wide_resnet50_2"), 32, STAGES),
}


def check_deep_lift(network: Network, layers: list[str]) -> None:
    model, input, start = prepared(network)
    found = saliency.deep_lift(model, input, [CLASSES], layers, start, reduction=None)
    change = (model(input) - model(start))[0, CLASSES]
    for attribution in found:
        flat = attribution[0].flatten(1)
        assert float(flat.abs().sum()) > 0
        assert bool(((flat.sum(1) - change).abs() <= 1e-9 * torch.maximum(change.abs(), flat.abs().sum(1))).all())


@pytest.mark.parametrize("name", ["vit", "swin", "mobilenet_v3_small"])
def test_deep_lift_misses_nothing(name):
    check_deep_lift(NETWORKS[name], ["", *NETWORKS[name].layers])


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_deep_lift_misses_nothing_on_any_convolutional_family(name):
    check_deep_lift(FAMILIES[name], ["", *FAMILIES[name].layers])


SHARED = Path(__file__).parents[2] / "shared" / "data"
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TRAINED = {"resnet18": IMAGENET, "squeezenet1_0": IMAGENET, "mobilenet_v2": ((0.5,) * 3, (0.5,) * 3)}


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real data are not here")
@pytest.mark.parametrize("name", TRAINED)
def test_on_a_photograph_trained_networks_miss_less_than_a_thousandth(name):
    """Of the change from the mean colour, with batch norms as trained."""
    model = torchvision.models.get_model(name, weights=None).eval().requires_grad_(False)
    model.load_state_dict(torch.load(SHARED / "weights" / f"{name}.pth"))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in TRAINED[name])
    input = ((load_dataset("imagenet", SHARED / "imagenet").image(0) - mean) / std)[None]
    target = int(model(input).argmax())
    options = {"n_steps": 50, "internal_batch_size": 10, "reduction": None, "return_convergence_delta": True}
    found, missed = saliency.integrated_gradients(model, input, target, "", 0.0, **options)
    assert float(missed.abs()) < 1e-3 * float(found.abs().sum())
