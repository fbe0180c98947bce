"""zennit: the ReLU rules as composites."""

from copy import deepcopy

import pytest
import torch

import saliency
from tests.parity.agreement import assert_agree
from tests.parity.networks import CASES, images, network

composites = pytest.importorskip("zennit.composites")
attribution = pytest.importorskip("zennit.attribution")

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("name", ["resnet18", "vgg11_bn"])  # its rules reach nn.ReLU alone
@pytest.mark.parametrize(
    ("method", "composite"), [("deconvnet", composites.DeconvNet), ("guided_backprop", composites.GuidedBackprop)]
)
def test_relu_rules(method, composite, name):
    input, target = images(), CASES[name].target
    ours = getattr(saliency, method)(
        network(name), input, target, gradient_to_saliency=lambda x: x.grad, layout="layer"
    )
    with attribution.Gradient(deepcopy(network(name)), composite()) as attributor:
        _, theirs = attributor(input.clone(), torch.eye(10)[target])
    assert_agree(ours, theirs)
