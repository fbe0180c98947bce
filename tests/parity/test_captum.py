"""Captum: attributions of layers and of the input, before any reduction to a map."""

from copy import deepcopy

import pytest

import saliency
from tests.parity.agreement import assert_agree
from tests.parity.networks import CASES, images, network

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
