"""zennit: the ReLU rules and relevance propagation, as composites."""

from copy import deepcopy
from functools import cache

import pytest
import torch
import torchvision
from torch import Tensor, nn

import saliency
from saliency import rules
from tests.parity.agreement import assert_agree
from tests.parity.networks import CASES, images, network, randomise

composites = pytest.importorskip("zennit.composites")
attribution = pytest.importorskip("zennit.attribution")
canonizers = pytest.importorskip("zennit.torchvision")

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


TINY = 1e-12
BOX = {"low": -3.0, "high": 3.0}
COMPOSITES = {
    "EpsilonPlus": rules.epsilon_plus(TINY),
    "EpsilonPlusFlat": rules.epsilon_plus_flat(TINY),
    "EpsilonAlpha2Beta1": rules.epsilon_alpha2_beta1(TINY),
    "EpsilonAlpha2Beta1Flat": rules.epsilon_alpha2_beta1_flat(TINY),
    "EpsilonGammaBox": rules.epsilon_gamma_box(**BOX, epsilon=TINY),
}
CANONIZERS = {
    "vgg16_bn": canonizers.VGGCanonizer,
    "resnet18": canonizers.ResNetCanonizer,
    "resnet50": canonizers.ResNetCanonizer,
}


@cache
def in_double(name: str) -> nn.Module:
    model = torchvision.models.get_model(name, weights=None, num_classes=10)
    if name == "vgg16_bn":
        model.avgpool = nn.Identity()
        model.classifier = nn.Sequential(nn.Linear(512, 64), nn.ReLU(True), nn.Dropout(), nn.Linear(64, 10))
    return randomise(model).double().eval().requires_grad_(False)


def eps_in_the_variance(model: nn.Module) -> nn.Module:
    """A copy whose batch norms add nothing to their variance: zennit 0.5.1 adds it again after it has merged them."""
    model = deepcopy(model)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var += module.eps
            module.eps = 0.0
    return model


@pytest.mark.parametrize("name", CANONIZERS)
@pytest.mark.parametrize("composite", COMPOSITES)
def test_relevance(composite, name):
    """Ours is given the model as it is, zennit's is told how to rewrite it."""
    model, input, target = in_double(name), images(32)[:1].double(), 3
    ours = saliency.lrp(model, input, target, rules=COMPOSITES[composite], reduction=None)
    bounds = {side: torch.full_like(input, value) for side, value in BOX.items()} if composite.endswith("Box") else {}
    made = getattr(composites, composite)(epsilon=TINY, stabilizer=TINY, canonizers=[CANONIZERS[name]()], **bounds)

    def start(output: Tensor) -> Tensor:
        return torch.eye(10, dtype=output.dtype)[[target]] * output.detach()

    with attribution.Gradient(eps_in_the_variance(model), made) as attributor:
        _, theirs = attributor(input.clone(), start)
    assert_agree(ours, theirs, 1e-6)
