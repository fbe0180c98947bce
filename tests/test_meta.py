"""PyTorch's meta device stands in for a GPU: there, what waits for data or mixes devices raises.

A tensor on it has a shape and no values, so a method gets through only if nothing on its way depends on values: no
check that reads them, no size that is counted from them, no tensor made on another device.
"""

import pytest
import torch

import saliency
from tests import cases
from tests.cases import GENERAL, ModelCase
from tests.test_contract import needs, skip_if_not_made_for

pytestmark = cases.NOTICES

METHODS = [pytest.param(case, id=case.name) for case in GENERAL]
MODELS = [pytest.param(case, id=case.name) for case in (cases.IN_PLACE, cases.RESIDUAL, cases.TRANSFORMER)]
TARGET = torch.tensor([[0, 3, 1], [2, 1, 1]])


def on_meta(case: ModelCase) -> tuple[torch.nn.Module, torch.Tensor]:
    return case.model().to("meta"), case.input().to("meta")


@pytest.mark.parametrize("case", MODELS)
@pytest.mark.parametrize("method", METHODS)
def test_no_method_waits_for_the_device(method, case):
    """K targets, a layer by its name, the map resized and smoothed."""
    skip_if_not_made_for(method, case)
    model, input = on_meta(case)
    result = method(model, input, TARGET, case.layers[1], resize=True, smooth=0.05)
    assert result.shape == (2, 3, *input.shape[2:])
    assert result.device.type == "meta"
    assert result.dtype == torch.float64


@pytest.mark.parametrize("target", [1, [0, 2], (1,), [(1,), (2,)], lambda y: y[:, 1]], ids=cases.shown)
@pytest.mark.parametrize("method", METHODS)
def test_no_target_of_any_kind_waits_for_the_device(method, target):
    needs(method, "any layer", *["functions"] * callable(target))
    model, input = on_meta(cases.IN_PLACE)
    for layer in ("", "features.0"):
        result = method(model, input, target, layer)
        assert result.shape == (2, 1, 11, 14)
        assert result.device.type == "meta"


@pytest.mark.parametrize("method", [m for m in METHODS if "layers" not in m.values[0].lacks])
def test_no_list_of_layers_waits_for_the_device(method):
    model, input = on_meta(cases.IN_PLACE)
    results = method(model, input, TARGET, ["features.0", "features"])
    assert [tuple(result.shape) for result in results] == [
        (2, 3, 11, 14) if method.at_input else (2, 3, *grid) for grid in ((11, 14), (6, 7))
    ]
    assert {result.device.type for result in results} == {"meta"}


@pytest.mark.parametrize("layer", ["", "features.0"])
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("integrated_gradients", {"method": "riemann_trapezoid", "return_convergence_delta": True}),
        ("conductance", {"return_convergence_delta": True}),
        ("gradient_shap", {"stdevs": 0.1, "return_convergence_delta": True}),
        ("smooth_gradient", {"power": "variance"}),
        ("deep_lift", {"return_convergence_delta": True}),
        ("deep_lift_shap", {"return_convergence_delta": True}),
    ],
)
def test_no_path_waits_for_the_device(method, options, layer):
    """In chunks that cut through the samples, with baselines that are on the device or are not."""
    model, input = on_meta(cases.IN_PLACE)
    many = {name: {"n_samples": 4} for name in ("gradient_shap", "smooth_gradient")}
    many |= {name: {"n_steps": 4} for name in ("integrated_gradients", "conductance")}
    for baselines in (torch.zeros(1, 3, 11, 14), torch.zeros(1, 3, 11, 14, device="meta")):
        given = many.get(method, {}) | ({} if method == "smooth_gradient" else {"baselines": baselines})
        result = getattr(saliency, method)(
            model, input, TARGET, layer, **options, **given, internal_batch_size=3, reduction=None
        )
        result, delta = result if "return_convergence_delta" in options else (result, None)
        assert result.shape == (2, 3, 5 if layer else 3, 11, 14)
        assert delta is None or (delta.shape, delta.device.type) == ((2, 3), "meta")


@pytest.mark.parametrize("builder", [saliency.GuidedBackpropContext, saliency.ExcitationBackpropContext])
def test_no_shared_pass_waits_for_the_device(builder):
    model, input = on_meta(cases.IN_PLACE)
    shared = saliency.shared_forward(model, input, ["features.0", "features"])
    for layer in ("features.0", "features"):
        result = saliency.saliency(model, input, TARGET, layer, context_builder=builder, shared=shared)
        assert result.device.type == "meta"
