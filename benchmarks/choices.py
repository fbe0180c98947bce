"""Which methods and metrics a benchmark plays, with which options: its own, those of a paper, and those asked for."""

from collections.abc import Callable, Iterable, Sequence
from inspect import signature
from typing import Any

import torch

from benchmarks.torchray_loop import LAYERS as RESNET_LAYERS
from benchmarks.torchray_loop import SMOOTH as TORCHRAY_SMOOTH
from saliency import METHODS, get_pointing_gradient
from saliency.cli.options import POINTS_AT_ONCE, choose_methods, choose_options, is_path_method, read_value
from saliency.evaluation.baselines import BASELINES
from saliency.evaluation.cases import Dataset
from saliency.evaluation.explainers import Methods
from saliency.evaluation.metrics import METRICS
from saliency.networks.models import EMBEDDED, SCENES, SCENES_VIT

CENTRE = "centre"
# Dozens or hundreds of passes for an image, or more: only if they are asked for, by name or with 'all'.
LONG = (
    *("integrated_gradients", "internal_influence", "conductance", "gradient_shap", "smooth_gradient"),
    *("expected_gradients", "deep_lift_shap", "smooth_grad_cam_plus_plus"),
    *("feature_ablation", "occlusion", "score_cam", "ss_cam", "is_cam", "rise", "extremal_perturbation"),
)
# Its map of an image depends on the rest of the batch, and so on the batch size: only if it is asked for by name.
BATCHED = ("feature_permutation",)
# For networks that have attention: only if they are asked for, by name or with 'attention'.
ATTENTION = tuple(name for name, method in METHODS.items() if method.needs_attention)
TORCHRAY = (
    *("gradient", "deconvnet", "guided_backprop", "grad_cam", "linear_approx"),
    *("excitation_backprop", "contrastive_excitation_backprop"),
)
# The layers of TorchRay's experiments, by the network's family.
TORCHRAY_LAYERS: dict[str, dict[str, dict[str, str]]] = {
    "resnet": RESNET_LAYERS,
    "vgg16": {
        "grad_cam": {"saliency_layer": "features.29"},
        "excitation_backprop": {"saliency_layer": "features.23"},
        "contrastive_excitation_backprop": {"saliency_layer": "features.23", "contrast_layer": "classifier.4"},
    },
}
# For maps at the resolution of the input, whose single pixels are noise; and for masks, whose maximum is a plateau.
SMOOTH = dict.fromkeys(
    (
        *("gradient", "gradient_x_activation", "linear_approx", "deconvnet", "guided_backprop", "guided_grad_cam"),
        *("integrated_gradients", "gradient_shap", "expected_gradients", "smooth_gradient"),
        *("deep_lift", "deep_lift_shap"),
    ),
    0.02,
) | {"extremal_perturbation": 0.09}

# Of the embedded networks, for a second a map: each of the 16 x 16 positions of a layer is a feature; few samples.
SCENES_LAYERS = {SCENES: "layer4", SCENES_VIT: "patch_embed"}
SCENES_OPTIONS: dict[str, dict[str, Any]] = {
    "feature_ablation": {"layer_mask": torch.arange(256).view(1, 1, 16, 16)},
    "ss_cam": {"num_samples": 2},
    "is_cam": {"num_samples": 3},
}


def choose_names(asked: Sequence[str] | None) -> list[str]:
    """The names of the methods, and of groups: ``'all'``, ``'torchray'``, ``'attention'``, ``'baselines'``.

    None is the centre and all that are quick. Left out of that and of ``'all'`` are :data:`BATCHED` and
    :data:`ATTENTION`.

    >>> choose_names(["centre", "grad_cam", "torchray"])[:3]
    ['centre', 'grad_cam', 'gradient']
    """
    names: list[str] = []
    every = [method for method in METHODS if method not in (*BATCHED, *ATTENTION)]
    groups = {"torchray": TORCHRAY, "attention": ATTENTION, "all": every}
    groups |= {"baselines": list(BASELINES), **{name: [name] for name in BASELINES}}
    for name in asked or [CENTRE, *(method for method in groups["all"] if method not in LONG)]:
        names += groups[name] if name in groups else choose_methods([name])
    return list(dict.fromkeys(names))


def make_methods(
    names: Sequence[str],
    layers: Iterable[str],
    pairs: Iterable[str],
    arch: str,
    cam_layer: str | None,
    torchray: bool,
    dataset: Dataset | None = None,
) -> Methods:
    """The methods with their options; ``layers`` are [METHOD=]NAME, ``pairs`` [METHOD.]NAME=VALUE.

    What is asked for of one method comes before what is asked for of all, then TorchRay's layers where they are to be
    played, then the layer where the CAMs of the network look. Some baselines look at the ``dataset``. ``ValueError``
    for an option that no method has.
    """
    real = [name for name in names if name not in BASELINES]
    options = {name: _own_options(name, cam_layer) for name in real}
    for name in (own for own in SCENES_OPTIONS if arch in EMBEDDED and own in options):
        options[name] |= SCENES_OPTIONS[name]
    if arch in EMBEDDED and "feature_ablation" in options:
        options["feature_ablation"]["saliency_layer"] = SCENES_LAYERS[arch]
    family = next((found for prefix, found in TORCHRAY_LAYERS.items() if arch.startswith(prefix)), {})
    for name in (own for own in TORCHRAY if torchray and own in options):
        options[name].pop("smooth", None)
        options[name] |= family.get(name, {}) | TORCHRAY_SMOOTH.get(name, {})
    asked = [("", pair) if (at := _owner(pair)) is None else at for pair in pairs]
    asked_layers = [layer.rpartition("=")[::2] for layer in layers]
    owners = list(dict.fromkeys(owner for owner, _ in [*asked_layers, *asked] if owner))
    for owner in ["", *owners]:
        if owner and owner not in real:
            raise ValueError(f"option={owner!r} is none of the methods that play; {', '.join(real)} are accepted.")
        layer = next((name for its, name in reversed(asked_layers) if its == owner), None)
        of_owner = [pair for its, pair in asked if its == owner]
        for name, chosen in choose_options([owner] if owner else real, layer, of_owner).items():
            options[name] |= chosen
    played = {name: (METHODS[name].function, options[name]) for name in real}
    return {name: played[name] if name in played else _baseline(name, dataset) for name in names}


def _baseline(name: str, dataset: Dataset | None) -> tuple[Callable[..., Any], dict[str, Any]]:
    function, _, prior = BASELINES[name]
    return function, {} if prior is None or dataset is None else {"prior": prior(dataset)}


def _owner(pair: str) -> tuple[str, str] | None:
    """The method of METHOD.NAME=VALUE, and the rest."""
    owner, dot, rest = pair.partition(".")
    return (owner, rest) if dot and "=" not in owner else None


def _own_options(name: str, cam_layer: str | None) -> dict[str, Any]:
    """The benchmark's options of a method."""
    options: dict[str, Any] = {"smooth": SMOOTH[name]} if name in SMOOTH else {}
    if is_path_method(name):
        options["internal_batch_size"] = POINTS_AT_ONCE
    elif "shared" in METHODS[name].options and name not in ATTENTION:  # they ask for a pass from the input on
        options["shared"] = True
    # An activation has no gradient to choose.
    if "get_backward_gradient" in METHODS[name].options and name != "activation":
        options["get_backward_gradient"] = get_pointing_gradient
    layer = signature(METHODS[name].function).parameters.get("saliency_layer")
    if cam_layer is not None and layer is not None and layer.default is None and name not in ATTENTION:
        options["saliency_layer"] = cam_layer
    return options


def choose_metrics(
    asked: Sequence[str] | None, pairs: Iterable[str], tolerance: float | None
) -> dict[str, dict[str, Any]]:
    """The metrics with their options; ``pairs`` are METRIC.NAME=VALUE. ``ValueError`` where the metric does not play.

    >>> choose_metrics(["pointing_game"], ["pointing_game.tolerance=5"], None)
    {'pointing_game': {'tolerance': 5}}
    """
    names = [metric for name in asked or ["pointing_game"] for metric in (METRICS if name == "all" else [name])]
    metrics: dict[str, dict[str, Any]] = {name: {} for name in names}
    given = [] if tolerance is None else [f"pointing_game.tolerance={tolerance}"]
    for pair in [*given, *pairs]:
        option, _, value = pair.partition("=")
        metric, _, name = option.partition(".")
        if metric not in metrics or not name or not value:
            known = ", ".join(metrics)
            raise ValueError(f"metric_option={pair!r} is for no metric; METRIC.NAME=VALUE of {known} is accepted.")
        metrics[metric][name] = read_value(value)
    return metrics
