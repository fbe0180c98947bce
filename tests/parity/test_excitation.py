"""TorchRay's excitation backprop: the same maps, from its rewritten copy of the network; and where it goes wrong."""

import importlib
from copy import deepcopy
from functools import cache
from typing import NamedTuple

import pytest
import torch
import torchvision
from torch import Tensor, nn

import saliency
from tests.cases import NOTICES
from tests.parity.agreement import assert_agree
from tests.parity.networks import CLASSES, images, randomise

pytest.importorskip("torchray.attribution.common")
# `torchray.attribution.excitation_backprop` is a module and, after some imports, also a function.
peer = importlib.import_module("torchray.attribution.excitation_backprop")

pytestmark = [pytest.mark.parity, NOTICES]

TARGET = [1, 3]


class Case(NamedTuple):
    """Layers to look at, from the front to the back, and the last linear layer; of the contrasts one is in a branch."""

    layers: tuple[str, ...]
    contrasts: tuple[str, ...]
    classifier: str


CASES = {
    "vgg11": Case(
        ("features.2", "features.9", "features"), ("features", "classifier.0", "classifier.4"), "classifier.6"
    ),
    "alexnet": Case(("features.2", "features.12", "avgpool"), ("classifier.2", "classifier.5"), "classifier.6"),
    "resnet18": Case(("layer1", "layer3", "layer4.0"), ("layer4.1.bn2", "layer4", "avgpool"), "fc"),
    "resnet50": Case(("layer2", "layer3", "layer4.1"), ("layer4.2.bn2", "layer4", "avgpool"), "fc"),
}


SIZE = {"vgg11": 96, "alexnet": 96, "resnet18": 64, "resnet50": 64}


@cache
def network(name: str) -> nn.Module:
    """A network of that name in evaluation mode; with few hidden units, where it has hidden layers."""
    options = {"init_weights": False} if name == "vgg11" else {}
    model = torchvision.models.get_model(name, weights=None, num_classes=CLASSES, **options)
    if not hasattr(model, "fc"):
        features = 512 * 7 * 7 if name == "vgg11" else 256 * 6 * 6
        hidden = [nn.Linear(features, 64), nn.ReLU(True), nn.Dropout(), nn.Linear(64, 48), nn.ReLU(True), nn.Dropout()]
        model.classifier = nn.Sequential(*hidden, nn.Linear(48, CLASSES))
    return randomise(model).eval()


def without_inplace(model: nn.Module) -> nn.Module:
    """A copy in which nothing behind one of TorchRay's probes is in place: there its backward pass would raise."""
    copy = deepcopy(model)
    for module in copy.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    return copy


def prepared(model: nn.Module) -> nn.Module:
    """A copy that TorchRay can explain: in a ResNet, residual sums become modules."""
    copy = without_inplace(model)
    return peer.update_resnet(copy) if isinstance(copy, torchvision.models.ResNet) else copy


@pytest.mark.parametrize(("name", "layer"), [(name, layer) for name in CASES for layer in ("", *CASES[name].layers)])
def test_excitation_backprop(name, layer):
    # TorchRay gives a share to an input below 0, which is not active. So the image is made positive.
    model, input = network(name), images(SIZE[name]).abs()
    ours = saliency.excitation_backprop(model, input, TARGET, layer)
    assert_agree(ours, peer.excitation_backprop(prepared(model), input.clone(), TARGET, layer))


@pytest.mark.parametrize("layer", ["layer4.1.conv1", "layer4.1.bn2", "layer4.0.downsample.0", "avgpool"])
def test_inside_a_residual_block(layer):
    model, input = network("resnet18"), images(64)
    ours = saliency.excitation_backprop(model, input, TARGET, layer)
    assert_agree(ours, peer.excitation_backprop(prepared(model), input.clone(), TARGET, layer))


CONTRASTS = [
    (name, layer, contrast) for name, case in CASES.items() for layer in case.layers for contrast in case.contrasts
]


@pytest.mark.parametrize("named", [True, False], ids=["named", "found"])
@pytest.mark.parametrize(("name", "layer", "contrast"), CONTRASTS)
def test_contrastive_excitation_backprop(name, layer, contrast, named):
    model, input = network(name), images(SIZE[name])
    classifier = CASES[name].classifier if named else None
    ours = saliency.contrastive_excitation_backprop(model, input, TARGET, layer, contrast, classifier)
    theirs = peer.contrastive_excitation_backprop(prepared(model), input.clone(), TARGET, layer, contrast, classifier)
    assert_agree(ours, theirs)


@pytest.mark.parametrize("options", [{"resize": True}, {"resize": (50, 70), "resize_mode": "bicubic"}], ids=str)
def test_resize(options):
    model, input = network("resnet18"), images(64)
    ours = saliency.contrastive_excitation_backprop(model, input, TARGET, "layer2", "layer4", **options)
    theirs = peer.contrastive_excitation_backprop(prepared(model), input.clone(), TARGET, "layer2", "layer4", **options)
    assert_agree(ours, theirs)


@pytest.mark.parametrize("name", ["alexnet", "resnet18"])
def test_the_place_of_the_contrast_does_not_matter(name):
    """The difference is sent on linearly: every layer that all paths cross gives the map of our default."""
    model, input = deepcopy(network(name)).double(), images(SIZE[name]).double()
    for layer in CASES[name].layers:
        ours = saliency.contrastive_excitation_backprop(model, input, TARGET, layer)
        for contrast in CASES[name].contrasts:
            if "bn2" not in contrast:  # that one is in a branch
                theirs = peer.contrastive_excitation_backprop(prepared(model), input.clone(), TARGET, layer, contrast)
                assert_agree(ours, theirs, 1e-10)


@pytest.mark.parametrize("name", CASES)
def test_what_cancels_out_in_float32(name):
    """The contrast is nearly all of p: their difference has some digits less than either. TorchRay's has no more."""
    model, input, layer = network(name), images(SIZE[name]), CASES[name].layers[0]
    exact = saliency.contrastive_excitation_backprop(deepcopy(model).double(), input.double(), TARGET, layer)
    assert_agree(saliency.contrastive_excitation_backprop(model, input, TARGET, layer), exact, 1e-3)
    contrast = CASES[name].contrasts[-1]
    theirs = peer.contrastive_excitation_backprop(prepared(model), input.clone(), TARGET, layer, contrast)
    assert_agree(theirs, exact, 1e-3)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_theirs_needs_a_rewritten_network(name):
    model, input = network(name), images(64).abs()
    for layer in ("layer1", "layer3"):
        ours = saliency.excitation_backprop(model, input, TARGET, layer)
        theirs = peer.excitation_backprop(without_inplace(model), input.clone(), TARGET, layer)
        torch.testing.assert_close(ours.sum((1, 2, 3)), torch.ones(2), rtol=0, atol=1e-5)
        assert (theirs.sum((1, 2, 3)) - 1).abs().min() > 0.5


def small() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(8, CLASSES)).eval()
    for module in model.modules():
        if getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)
    return model


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    """1e-20, which TorchRay adds to its denominators, is 0 in half precision."""
    model, input = small().to(dtype), images(16).to(dtype)
    input[..., :8] = 0
    exact = saliency.excitation_backprop(deepcopy(model).double(), input.double(), TARGET, "1")
    ours = saliency.excitation_backprop(model, input, TARGET, "1")
    assert_agree(ours.double(), exact, 0.03)
    theirs = peer.excitation_backprop(deepcopy(model), input.clone(), TARGET, "1")
    assert theirs.isnan().any() == (dtype == torch.float16)


def test_a_sum_of_nothing():
    """Where both terms of a residual sum are 0, TorchRay divides 0 by 0."""
    model, input = deepcopy(network("resnet18")), torch.zeros(2, 3, 64, 64)
    for module in model.modules():
        if getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.zeros_(module.running_mean)
    ours = saliency.excitation_backprop(model, input, TARGET, "layer1")
    assert torch.equal(ours, torch.zeros_like(ours))
    assert peer.excitation_backprop(prepared(model), input.clone(), TARGET, "layer1").isnan().any()


class Watch:
    """Counts the forward passes of a model, and those backward passes in which its weights are not what they were."""

    def __init__(self, model: nn.Module) -> None:
        self.forwards, self.backwards, self.flipped = 0, 0, 0
        self.before = deepcopy(model.state_dict())
        self.model = model
        model.register_forward_hook(self.forward)

    def forward(self, module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        self.forwards += 1
        output.register_hook(self.backward)

    def backward(self, gradient: Tensor) -> None:
        self.backwards += 1
        self.flipped += any(not torch.equal(value, self.before[key]) for key, value in self.model.state_dict().items())


def test_one_forward_pass_and_the_model_left_alone():
    model, theirs, input = small(), small(), images(16)
    watch, their_watch = Watch(model), Watch(theirs)
    saliency.contrastive_excitation_backprop(model, input, TARGET, "1", "3")
    peer.contrastive_excitation_backprop(theirs, input.clone(), TARGET, "1", "3")
    assert (watch.forwards, watch.backwards, watch.flipped) == (1, 2, 0)
    assert (their_watch.forwards, their_watch.backwards, their_watch.flipped) == (2, 2, 1)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(parameter.requires_grad for parameter in theirs.parameters())
