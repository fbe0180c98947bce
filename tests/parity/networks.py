"""The networks that every library is given: torchvision's, untrained, with seeded weights and statistics."""

from functools import cache
from typing import NamedTuple

import torch
import torchvision
from torch import Tensor, nn

CLASSES = 10


class Case(NamedTuple):
    """What is asked of a network: classes whose Grad-CAM is not 0 everywhere, and layers where every peer works.

    No operation behind such a layer is in place, and no activation there is negative, so no denominator of Grad-CAM++
    or XGrad-CAM cancels out.
    """

    target: list[int]
    size: int
    inside: str
    last: str


CASES = {
    "resnet18": Case([1, 3], 96, "layer3", "layer4"),
    "vgg11_bn": Case([1, 3], 96, "features.14", "features"),
    "densenet121": Case([1, 2], 64, "features.transition3.relu", "features.denseblock4.denselayer16.relu2"),
    "googlenet": Case([1, 3], 96, "inception4b", "inception5b"),
}
OPTIONS = {"vgg11_bn": {"init_weights": False}, "googlenet": {"aux_logits": False, "init_weights": False}}


def images(size: int = 96) -> Tensor:
    """Two random images, the same every time."""
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


@cache
def network(name: str) -> nn.Module:
    """A network of that name in evaluation mode. It is shared: a library that changes it is given a copy."""
    model = torchvision.models.get_model(name, weights=None, num_classes=CLASSES, **OPTIONS.get(name, {}))
    if name == "vgg11_bn":  # 64 hidden units in place of 4096: 100 million weights less to copy
        hidden = [nn.Linear(512 * 7 * 7, 64), nn.ReLU(True), nn.Dropout(), nn.Linear(64, CLASSES)]
        model.classifier = nn.Sequential(*hidden)
    return randomise(model.float()).eval()  # whatever the default precision of the first test that asks


def randomise(model: nn.Module) -> nn.Module:
    """Draw weights, biases and statistics, so that no bias is 0 and no normalisation the identity.

    Then no ReLU is given exactly 0, where TorchRay's guided rule lets the gradient through and the paper's does not.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
            elif isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.0, generator=generator)
                module.running_mean.normal_(0, 0.1, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
                module.num_batches_tracked.zero_()
            if getattr(module, "bias", None) is not None:
                module.bias.normal_(0, 0.1, generator=generator)
    return model


class Scaled(nn.Module):
    """A network whose scores are so large that an absolute epsilon next to their gradient does not count."""

    def __init__(self, network, factor):
        super().__init__()
        self.network = network
        self.factor = factor

    def forward(self, input):
        return self.network(input) * self.factor
