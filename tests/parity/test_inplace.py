"""A layer followed by an in-place operation: exact here, where TorchRay raises and two peers return another map.

What is said of the peers is asserted, so that the day they are mended shows.
"""

from copy import deepcopy

import pytest
import torch
from torch import nn

import saliency
from tests.parity.agreement import assert_agree, relative_error
from tests.parity.networks import CASES, images, network

pytestmark = pytest.mark.parity

TARGET = CASES["resnet18"].target
LAYERS = ["bn1", "layer4.1.bn2"]


def reference(layer):
    """Grad-CAM at a layer of a network without in-place operations, by plain autograd."""
    model = deepcopy(network("resnet18"))
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    before = nn.Sequential(model.conv1, model.bn1)
    rest = nn.Sequential(model.relu, model.maxpool, model.layer1, model.layer2, model.layer3, model.layer4[0])
    block, head = model.layer4[1], nn.Sequential(model.avgpool, nn.Flatten(), model.fc)
    stem = before(images())
    identity = rest(stem)
    residual = block.bn2(block.conv2(block.relu(block.bn1(block.conv1(identity)))))
    scores = head(block.relu(residual.clone() + identity))  # torchvision adds in place
    assert torch.allclose(scores, network("resnet18")(images()), atol=1e-5)
    x = {"bn1": stem, "layer4.1.bn2": residual}[layer]
    (dx,) = torch.autograd.grad(scores[range(len(TARGET)), TARGET].sum(), x)
    return (dx.mean((2, 3), keepdim=True) * x).sum(1, keepdim=True).relu().detach()


@pytest.mark.parametrize("layer", LAYERS)
class TestInPlace:
    def test_ours_is_exact(self, layer):
        assert_agree(saliency.grad_cam(network("resnet18"), images(), TARGET, layer), reference(layer))

    def test_torchray_raises(self, layer):
        grad_cam = pytest.importorskip("torchray.attribution.grad_cam").grad_cam
        with pytest.raises(RuntimeError, match="in-place operation"):
            grad_cam(deepcopy(network("resnet18")), images(), TARGET, saliency_layer=layer)

    def test_pytorch_grad_cam_differs(self, layer):
        peer = pytest.importorskip("pytorch_grad_cam")
        model = deepcopy(network("resnet18"))
        with peer.GradCAM(model, [model.get_submodule(layer)]) as cam:
            hooks = cam.activations_and_grads
            scores = hooks(images())
            scores[range(len(TARGET)), TARGET].sum().backward()
            weights = hooks.gradients[0].mean((2, 3), keepdim=True)
            theirs = (weights * hooks.activations[0]).sum(1, keepdim=True).relu()
        assert relative_error(theirs, reference(layer)) > 1e-3

    def test_torchcam_differs(self, layer):
        peer = pytest.importorskip("torchcam.methods")
        model = deepcopy(network("resnet18"))
        with peer.GradCAM(model, layer) as cam:
            (theirs,) = cam(TARGET, model(images()), normalized=False)
        assert relative_error(theirs[:, None], reference(layer)) > 1e-3

    def test_captum_agrees(self, layer):
        peer = pytest.importorskip("captum.attr")
        model = deepcopy(network("resnet18"))
        cam = peer.LayerGradCam(model, model.get_submodule(layer))
        assert_agree(cam.attribute(images(), TARGET, relu_attributions=True), reference(layer))
