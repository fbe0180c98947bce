"""Every method explains the smallest network of each family of torchvision's classifiers, at the layer that is found.

Images of 64 pixels; ``make sweep`` takes every size, at its own.
"""

import pytest
import torchvision
from torch.utils._pytree import tree_map

from benchmarks.zoo import examine
from benchmarks.zoo_methods import SCORED
from benchmarks.zoo_networks import TORCHVISION, classifiers
from saliency import METHODS
from saliency.networks.models import networks
from tests.cases import NOTICES

pytestmark = [pytest.mark.sweep, NOTICES]

SIDE = 64
# As many passes as their layers have channels, which are 96 and more in every layer.
WIDE = ("convnext_tiny", "swin_t", "swin_v2_t", "vit_b_32")
ATTENDING = ("vit_b_32",)
WINDOWS = ("maxvit_t", "swin_t", "swin_v2_t")
# At 64 pixels some last layers have 2 x 2 cells, all of which see the whole image.
COARSE = ()


def family(name: str) -> str:
    """The name without its size."""
    return name.rstrip("0123456789").rstrip("_")


@pytest.mark.parametrize("name", TORCHVISION)
def test_every_method_has_a_map_or_a_reason(name):
    network = dict(classifiers(torchvision, TORCHVISION, SIDE))[name]
    methods = [method for method in METHODS if method not in SCORED or name not in WIDE]
    row = examine("torchvision", name, network, methods)
    assert (row.error, row.problems) == ("", ())
    assert row.layer
    assert row.times.keys() | row.reasons.keys() == set(methods)
    attention = {method for method in METHODS if METHODS[method].needs_attention}
    allowed = attention if name not in ATTENDING else set()
    assert row.reasons.keys() - {"cam"} <= allowed
