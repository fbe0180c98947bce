"""Captum misses as much of the score's change as we do, at 50 steps: the miss is the quadrature's, not a program's."""

from collections.abc import Iterator
from copy import deepcopy

import pytest
import torch

import saliency
from tests.parity.agreement import relative_error
from tests.test_completeness import calibrated

peer = pytest.importorskip("captum.attr")

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore:Input Tensor .* did not already require gradients:UserWarning"),
]

CLASS = 4
OPTIONS = {"n_steps": 50, "internal_batch_size": 10, "return_convergence_delta": True}


@pytest.fixture(autouse=True)
def _captum_places_its_steps_in_float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


# The limits are those that integrated gradients keep on smooth networks, and conductance on most others.
@pytest.mark.parametrize(
    ("method", "layer", "limit"),
    [("integrated_gradients", "", 1e-3), ("conductance", "features.denseblock4", 1e-2)],
)
def test_what_is_missed_is_the_quadratures_own(method, layer, limit):
    model, input, _ = calibrated("densenet121")
    copy = deepcopy(model)
    for module in copy.modules():
        if hasattr(module, "inplace"):  # Captum puts a leaf in the layer's place, which nothing may overwrite
            module.inplace = False
    if method == "conductance":
        theirs = peer.LayerConductance(copy, copy.get_submodule(layer))
    else:
        theirs = peer.IntegratedGradients(copy)
    found, missed = getattr(saliency, method)(model, input, CLASS, layer, 0.0, reduction=None, **OPTIONS)
    expected, its = theirs.attribute(input, torch.zeros_like(input), target=CLASS, **OPTIONS)
    assert relative_error(found, expected.detach()) <= 1e-7
    scale = float(expected.detach().abs().sum())
    assert float(its.abs()) > limit * scale
    assert float((missed - its).abs()) <= 1e-6 * float(its.abs())
