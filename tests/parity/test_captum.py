"""Captum: attributions of layers and of the input, before any reduction to a map."""

from copy import deepcopy

import pytest
import torch
from torch import nn

import saliency
from saliency import rules
from tests.cases import Net
from tests.parity.agreement import assert_agree
from tests.parity.networks import CASES, images, network, randomise

peer = pytest.importorskip("captum.attr")

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore:Input Tensor .* did not already require gradients:UserWarning"),
    pytest.mark.filterwarnings("ignore:Setting backward hooks on ReLU activations:UserWarning"),
]

# Captum's guided and deconvolution rules reach nn.ReLU alone, not the functions that the other networks call.
MODULES_ONLY = ["resnet18", "vgg11_bn"]


def case(name):
    """Model, images, target, and a copy of the model for the peer."""
    return network(name), images(CASES[name].size), CASES[name].target, deepcopy(network(name))


@pytest.mark.parametrize("layer", ["inside", "last"])
@pytest.mark.parametrize("name", CASES)
class TestLayers:
    def test_grad_cam(self, name, layer):
        model, input, target, copy = case(name)
        layer = getattr(CASES[name], layer)
        theirs = peer.LayerGradCam(copy, copy.get_submodule(layer))
        theirs = theirs.attribute(input.clone(), target, relu_attributions=True)
        assert_agree(saliency.grad_cam(model, input, target, layer), theirs)

    def test_gradient_x_activation(self, name, layer):
        model, input, target, copy = case(name)
        layer = getattr(CASES[name], layer)
        theirs = peer.LayerGradientXActivation(copy, copy.get_submodule(layer)).attribute(input.clone(), target)
        assert_agree(saliency.gradient_x_activation(model, input, target, layer, reduction=None), theirs)

    def test_activation(self, name, layer):
        model, input, target, copy = case(name)
        layer = getattr(CASES[name], layer)
        theirs = peer.LayerActivation(copy, copy.get_submodule(layer)).attribute(input.clone())
        assert_agree(saliency.activation(model, input, target, layer, reduction=None), theirs)


def test_layer_input():
    model, input, target, copy = case("resnet18")
    theirs = peer.LayerGradCam(copy, copy.layer4)
    theirs = theirs.attribute(input.clone(), target, relu_attributions=True, attribute_to_layer_input=True)
    assert_agree(saliency.grad_cam(model, input, target, "layer4", attribute_to_layer_input=True), theirs)


def test_tokens_and_other_layouts_are_left_alone_without_reduction():
    model, input, target, copy = case("vgg11_bn")
    theirs = peer.LayerGradientXActivation(copy, copy.classifier[0]).attribute(input.clone(), target)
    assert theirs.ndim == 2
    assert_agree(saliency.gradient_x_activation(model, input, target, "classifier.0", reduction=None), theirs)


@pytest.mark.parametrize("name", MODULES_ONLY)
@pytest.mark.parametrize(
    ("method", "theirs"), [("deconvnet", peer.Deconvolution), ("guided_backprop", peer.GuidedBackprop)]
)
def test_relu_rules(method, theirs, name):
    model, input, target, copy = case(name)
    ours = getattr(saliency, method)(model, input, target, gradient_to_saliency=lambda x: x.grad, layout="layer")
    assert_agree(ours, theirs(copy).attribute(input.clone(), target))


@pytest.mark.parametrize("name", CASES)
def test_gradient(name):
    model, input, target, copy = case(name)
    ours = saliency.gradient(model, input, target, gradient_to_saliency=lambda x: x.grad, layout="layer")
    assert_agree(ours, peer.Saliency(copy).attribute(input.clone(), target, abs=False))


# Behind `features` and `features.14` of VGG there are more ReLUs: Grad-CAM's own backward pass is the plain one.
@pytest.mark.parametrize(
    ("name", "layer"),
    [("resnet18", "layer4"), ("resnet18", "layer2"), ("vgg11_bn", "features"), ("vgg11_bn", "features.14")],
)
@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_guided_grad_cam(mode, name, layer):
    model, input, target, copy = case(name)
    theirs = peer.GuidedGradCam(copy, copy.get_submodule(layer))
    theirs = theirs.attribute(input.clone(), target, interpolate_mode=mode)
    assert_agree(saliency.guided_grad_cam(model, input, target, layer, interpolate_mode=mode, reduction=None), theirs)


class TestRelevance:
    """Relevance propagation with rules by layer.

    Captum's gamma and alpha rules leave the bias as it is, where the papers' count its positive part alone: they agree
    without biases, and where the score is positive, as all else is behind ReLU.
    """

    def network(self, bias: bool) -> nn.Module:
        first, second = nn.Conv2d(3, 4, 3, bias=bias), nn.Conv2d(4, 5, 3, padding=1, bias=bias)
        linear = nn.Linear(45, 8, bias=bias), nn.ReLU(), nn.Dropout(), nn.Linear(8, 10, bias=bias)
        convolutional = first, nn.ReLU(), nn.MaxPool2d(2), second, nn.ReLU(), nn.AdaptiveAvgPool2d(3)
        parts = {"a": nn.Sequential(*convolutional), "b": nn.Sequential(*linear)}
        return randomise(Net(lambda s, x: s.b(s.a(x).flatten(1)), **parts))

    @pytest.mark.parametrize("chosen", ["eeee", "gggg", "eaae", "gaee", "eega"])
    def test_rules_by_layer(self, chosen):
        from captum.attr._utils import lrp_rules as theirs

        model, input = self.network(bias=chosen == "eeee"), images(14).abs()
        own = {"e": rules.epsilon(1e-9), "g": rules.gamma(0.25, 1e-9), "a": rules.z_plus(1e-9)}
        layers = dict(zip(("a.0", "a.3", "b.0", "b.3"), chosen, strict=True))
        table = rules.relevance_rules(own["e"], own["e"], layers={name: own[rule] for name, rule in layers.items()})
        target = model(input).argmax(1)
        found, delta = saliency.lrp(model, input, target, "", table, reduction=None, return_convergence_delta=True)
        copy = deepcopy(model)
        make = {"e": theirs.EpsilonRule, "g": theirs.GammaRule, "a": theirs.Alpha1_Beta0_Rule}
        for name, rule in layers.items():
            copy.get_submodule(name).rule = make[rule]()
        expected, their_delta = peer.LRP(copy).attribute(input.clone(), target, return_convergence_delta=True)
        assert_agree(found, expected)
        torch.testing.assert_close(delta, their_delta, rtol=1e-3, atol=1e-4)
