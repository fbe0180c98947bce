"""Options: other libraries' names, misspelt ones, values that are none, and the table of what can be passed."""

from collections.abc import Callable
from inspect import Parameter, signature
from typing import Any

import pytest
import torch
from torch import Tensor

import saliency
from saliency import METHODS, feature_ablation, grad_cam, guided_grad_cam, integrated_gradients
from tests import cases
from tests.users.networks import cnn, rand

QUICK = {
    "rise": {"num_masks": 2},
    "extremal_perturbation": {"areas": 0.3, "max_iter": 1, "step": 2, "sigma": 2},
    **{name: {"n_steps": 2} for name in ("integrated_gradients", "internal_influence", "conductance")},
    **{name: {"num_samples": 1} for name in ("ss_cam", "is_cam")},
    **{name: {"n_samples": 1} for name in ("smooth_gradient", "gradient_shap", "expected_gradients")},
}
FURTHER: dict[str, Callable[..., Any]] = {
    "saliency": saliency.saliency,
    "all classes of rise": saliency.rise,
    "masks of extremal_perturbation": saliency.extremal_perturbation,
    **{f"smooth_grad of {name}": saliency.smooth_grad(METHODS[name].function, 1) for name in ("grad_cam", "rise")},
}
ALL = {**{name: method.function for name, method in METHODS.items()}, **FURTHER}


X = rand(2, 3, 8, 9)

# --- names that are none --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "ours"),
    [
        ("reshape_transform", "layout"),
        ("target_layers", "saliency_layer"),
        ("target_layer", "saliency_layer"),
        ("layer", "saliency_layer"),
        ("targets", "target"),
        ("class_idx", "target"),
        ("input_tensor", "input"),
        ("aug_smooth", "smooth_grad"),
        ("eigen_smooth", "gradient_to_saliency"),
        ("attributions_only", "maps"),
        ("relu_attributions", "gradient_to_saliency"),
        ("interpolate_mode", "resize_mode"),
        ("nt_samples", "smooth_grad"),
        ("normalized", "raw scale"),
    ],
)
@pytest.mark.parametrize("method", ALL)
def test_the_names_of_other_libraries_are_told_ours(method, option, ours):
    if option in signature(ALL[method]).parameters:
        return
    with pytest.raises(ValueError, match=rf"^{option}=.* is not an option; expected .*{ours}"):
        ALL[method](cnn(), X, 1, **{option: [1]})


MISSPELT = {
    "resiz": "resize",
    "smoth": "smooth",
    "forward_kwarg": "forward_kwargs",
    "aditional_forward_args": "additional_forward_args",
}
OWN = [
    ("integrated_gradients", "n_step", "n_steps"),
    ("integrated_gradients", "baseline", "baselines"),
    ("gradient_shap", "stdev", "stdevs"),
    ("smooth_gradient", "n_sample", "n_samples"),
    ("guided_grad_cam", "interpolation_mode", "interpolate_mode"),
    ("contrastive_excitation_backprop", "contrast_layr", "contrast_layer"),
    ("feature_ablation", "layer_maks", "layer_mask"),
    ("occlusion", "stride", "strides"),
    ("score_cam", "perturbations_per_evaluation", "perturbations_per_eval"),
    ("ss_cam", "num_sample", "num_samples"),
    ("rise", "num_mask", "num_masks"),
    ("extremal_perturbation", "area", "areas"),
    ("extremal_perturbation", "max_iters", "max_iter"),
    ("grad_cam", "saliency_layers", "saliency_layer"),
    ("gradient", "multiply_by_input", "multiply_by_inputs"),
]


@pytest.mark.parametrize(
    ("method", "option", "meant"), [*OWN, *((method, *pair) for method in ALL for pair in MISSPELT.items())]
)
def test_a_misspelt_option_is_told_the_nearest(method, option, meant):
    """The method's own, too, which the driver does not know; and all that there are."""
    with pytest.raises(ValueError, match=rf"^{option}=3 is not an option \(did you mean '{meant}'\?\)") as error:
        ALL[method](cnn(), X, 1, **{option: 3})
    if method in METHODS:
        listed = set(str(error.value).partition("expected one of ")[2].rstrip(".").split(", "))
        assert METHODS[method].options <= listed


def test_a_name_like_no_other():
    with pytest.raises(ValueError, match=r"^zzz=a Net is not an option; expected one of .*resize.*\.$"):
        grad_cam(cnn(), X, 1, zzz=cnn())


def test_a_function_that_hands_its_options_on_adds_its_own():
    def mine(model: Any, x: Tensor, threshold: float = 0.5, **options: Any) -> Tensor:
        return grad_cam(model, x, 1, **options) > threshold

    with pytest.raises(ValueError, match=r"treshold=1 is not an option \(did you mean 'threshold'\?\)"):
        mine(cnn(), X, treshold=1)


# --- the table ------------------------------------------------------------------------------------------------------


def values(option: str) -> Any:
    """A value that could be meant."""
    found = {
        "saliency_layer": "conv",
        "resize": True,
        "smooth": 0.1,
        "context_builder": saliency.NullContext,
        "gradient_to_saliency": lambda x: x.grad.sum(1, keepdim=True),
        "get_backward_gradient": saliency.get_backward_gradient,
        "path": saliency.noise(2),
        "internal_batch_size": 1,
        "call": -1,
        "layout": "channels_first",
        "reduction": saliency.sum_channels,
        "baselines": 0.0,
        "method": "riemann_middle",
        "stdevs": 0.1,
        "power": "mean",
        "contrast_layer": None,
        "progress": lambda done, total: None,
        "print_iter": lambda iteration, energies: None,
        "reward_func": saliency.simple_reward,
        "cam": saliency.layer_cam,
        "shared": saliency.shared_forward(cnn(), X) if option == "shared" else None,
        "perturbation": "fade",
        "variant": "preserve",
        "filter_masks": torch.ones(2, 1, 8, 9),
        "areas": 0.2,
        "std": 1.0,
        "p": 0.5,
        "scores": "raw",
        "sums": "active",
        "sigma": 2,
        "num_levels": 3,
        "tolerance": 0.1,
        "forward_kwargs": {},
        "kernel": "rbf",
        "gamma": 0.5,
        "k": 1,
        "num_references": 2,
        **dict.fromkeys(("resize_mode", "interpolate_mode"), "nearest"),
        **dict.fromkeys(("n_steps", "n_samples", "num_masks", "num_cells", "num_samples", "step", "max_iter"), 2),
        **dict.fromkeys(("seed", "batch_size", "perturbations_per_eval"), 1),
    }
    flags = ("debug", "attribute_to_layer_input", "return_convergence_delta", "multiply_by_inputs")
    return found.get(option, option in (*flags, "materialize_grads", "jitter") or None)


PASSED = [(case.name, option) for case in cases.GENERAL for option in sorted(METHODS[case.name].options)]


@pytest.mark.parametrize(("name", "option"), PASSED)
def test_every_option_of_the_table_can_be_passed(name, option):
    """It gives maps, or a ValueError where it means nothing together with the method's own."""
    method = METHODS[name].function
    options = {**QUICK.get(name, {}), option: values(option)}
    if name in ("gradient_shap", "expected_gradients", "deep_lift_shap") and option == "baselines":
        options["baselines"] = X
    try:
        result = method(cnn(), X, 1, **options)
    except ValueError as error:
        result = str(error)
    if option in ("path", "shared", "internal_batch_size", "return_convergence_delta", "debug") and isinstance(
        result, str
    ):
        assert "is not possible" in result
    elif (name, option) == ("cam", "attribute_to_layer_input"):  # what the layer is given is not what is pooled
        assert "lacks" in result
    else:
        assert isinstance(result[0] if isinstance(result, tuple) else result, Tensor), result


@pytest.mark.parametrize("name", METHODS)
def test_what_is_not_in_the_table_cannot_be_passed(name):
    method = METHODS[name]
    every = {parameter for parameter, _ in signature(saliency.saliency).parameters.items()} | method.options
    for option in every - method.options - {"model", "input", "target"}:
        with pytest.raises((ValueError, TypeError), match=option):
            method.function(cnn(), X, 1, **{option: values(option)})
    kinds = {p.kind for key, p in signature(method.function).parameters.items() if key in method.options}
    assert kinds <= {Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY}


# --- values that are none -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("shared", value) for value in (5, "yes", True)),
        *(("get_backward_gradient", value) for value in (5, "x", torch.ones(2))),
        *(("gradient_to_saliency", value) for value in (None, "x", torch.ones(2))),
        *(("context_builder", value) for value in (5, None)),
        *(("debug", value) for value in (3, "yes", None)),
        *(("path", value) for value in (5, "line", [1])),
        *(("call", value) for value in (1.5, "first", None)),
        *(("internal_batch_size", value) for value in (0, "x", 1.5)),
        *(("layout", value) for value in (5, [2, 2], (1, 2, 3))),
        *(("resize", value) for value in ("big", 7, (0, 3), torch.ones(2))),
        *(("forward_kwargs", value) for value in (5, [1])),
    ],
    ids=str,
)
def test_a_value_that_is_none_is_named_before_the_forward_pass(option, value):
    net, calls = cnn(), []
    net.register_forward_pre_hook(lambda *args: calls.append(1))
    with pytest.raises(ValueError, match=rf"^{option}=.*expected .*\.$"):
        saliency.saliency(net, X, 1, "conv", **{option: value})
    assert not calls


@pytest.mark.parametrize("method", [guided_grad_cam, integrated_gradients, feature_ablation, saliency.activation])
def test_a_reduction_that_is_none(method):
    options = {"n_steps": 2} if method is integrated_gradients else {}
    for wrong in ("x", 5, torch.ones(2), [saliency.sum_channels]):
        with pytest.raises(ValueError, match=r"^reduction=.* is not a reduction; expected a function or None\.$"):
            method(cnn(), X, 1, "conv", reduction=wrong, **options)
    for returned in (5, None, "map", [1.0]):
        with pytest.raises(ValueError, match=r"^reduction=.* returned a .*; expected a tensor\.$"):
            method(cnn(), X, 1, "conv", reduction=lambda attribution, r=returned: r, **options)


SECRET = 41.390625  # no other number looks like it
SECRETS = [torch.full((3, 5), SECRET), [torch.full((2,), SECRET)], {"a": torch.tensor(SECRET)}]
OF_EACH_KIND = (
    *("grad_cam", "guided_grad_cam", "excitation_backprop", "contrastive_excitation_backprop", "integrated_gradients"),
    *("smooth_gradient", "feature_ablation", "occlusion", "ss_cam", "rise", "extremal_perturbation"),
)


def message_of(name: str, **options: Any) -> str:
    """What a call raises, if that is a ``ValueError``."""
    try:
        METHODS[name].function(cnn(), X, 1, **options)
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("name", "option"),
    [case for case in PASSED if case[0] in OF_EACH_KIND and not case[1].startswith(("forward", "additional"))],
)
def test_no_error_prints_the_values_of_a_tensor(name, option):
    for value in SECRETS:
        assert "41.39" not in message_of(name, **{**QUICK.get(name, {}), option: value})


@pytest.mark.parametrize("method", ["gradient", "rise", "extremal_perturbation", "occlusion"])
def test_no_error_prints_the_values_of_an_input_or_a_target(method):
    function, options = METHODS[method].function, QUICK.get(method, {})
    secret = torch.full((2, 3, 8, 9), SECRET, dtype=torch.float64)
    for input, target in (
        ([secret], [secret]),
        (secret[0], 1),
        (secret, torch.full((2,), SECRET)),
        (secret, torch.full((2, 5, 5), SECRET)),
        (secret, [torch.full((2,), SECRET)]),
        (secret, (torch.full((2,), SECRET),)),
        (secret, {"target": torch.tensor(SECRET)}),
    ):
        with pytest.raises(ValueError, match="expected") as error:
            function(cnn(), input, target, **options)
        assert "41.39" not in str(error.value)
