"""Every method explains the smallest network of each family of torchvision's classifiers, at the layer that is found.

Images of 64 pixels; ``make sweep`` takes every size, at its own.
"""

import pytest
import torchvision

from benchmarks.zoo import examine
from benchmarks.zoo_methods import SCORED
from benchmarks.zoo_networks import TORCHVISION, classifiers
from saliency import METHODS
from tests.cases import NOTICES

pytestmark = [
    pytest.mark.sweep,
    NOTICES,
    pytest.mark.filterwarnings("ignore:The default weight initialization"),  # of GoogLeNet and Inception
]

NETWORKS = dict(classifiers(torchvision, TORCHVISION, 64))
# Methods that take a pass a channel are run where some layer has few.
NARROW = ("efficientnet_b0", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf", "shufflenet_v2_x0_5")
ATTENTION = {name for name, method in METHODS.items() if method.needs_attention}
SIBLINGS = ("resnet50", "vgg11_bn", "wide_resnet50_2")  # of resnet18, vgg11 and resnext50


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in SIBLINGS])
def test_every_method_has_a_map_or_a_reason(name):
    methods = [method for method in METHODS if method not in SCORED or name in NARROW]
    row = examine("torchvision", name, NETWORKS[name], methods)
    assert (row.error, row.problems) == ("", ())
    assert row.layer
    assert row.times.keys() | row.reasons.keys() == set(methods)
    assert row.reasons.keys() - {"cam"} <= (ATTENTION if name != "vit_b_32" else set())
