"""Which methods and metrics a benchmark runs, with which options: the defaults, a paper's, and the user's."""

from collections.abc import Collection, Iterable, Sequence
from inspect import signature

from saliency.cli.naming import Function, Named, find_method
from saliency.cli.options import choose_methods, choose_options, read_value
from saliency.cli.settings import (
    ATTENTION,
    BATCHED,
    LONG,
    SCENES_LAYERS,
    SCENES_OPTIONS,
    SMOOTH,
    TORCHRAY,
    TORCHRAY_LAYERS,
    TORCHRAY_SMOOTH,
)
from saliency.engine.checks import did_you_mean
from saliency.engine.targets import get_pointing_gradient
from saliency.evaluation.baselines import BASELINES
from saliency.evaluation.cases import Dataset
from saliency.evaluation.explainers import Explainer, Methods, Options
from saliency.evaluation.metrics import METRICS
from saliency.evaluation.running.plan import named_metrics
from saliency.explaining.choosing import POINTS_AT_ONCE
from saliency.methods import METHODS
from saliency.networks.models import EMBEDDED

CENTRE = "centre"


def choose_names(asked: Sequence[str] | None) -> list[str]:
    """The names of the methods, and of groups: ``'all'``, ``'torchray'``, ``'attention'``, ``'baselines'``.

    None is the centre and all quick ones. Left out of that and of ``'all'`` are :data:`BATCHED` and
    :data:`ATTENTION`.

    >>> choose_names(["centre", "grad_cam", "torchray"])[:3]
    ['centre', 'grad_cam', 'gradient']
    """
    every = [method for method in METHODS if method not in (*BATCHED, *ATTENTION)]
    groups = {"torchray": TORCHRAY, "attention": ATTENTION, "all": every}
    groups |= {"baselines": list(BASELINES), **{name: [name] for name in BASELINES}}
    names: list[str] = []
    for name in asked or [CENTRE, *(method for method in every if method not in LONG)]:
        names += groups[name] if name in groups else choose_methods([name], groups)
    return list(dict.fromkeys(names))


def make_methods(
    names: Sequence[str],
    layers: Iterable[str],
    given: Iterable[str],
    arch: str,
    cam_layer: str | None,
    torchray: bool,
    dataset: Dataset | None = None,
    versions: Iterable[str] = (),
) -> Methods:
    """The methods with their options; ``layers`` are [METHOD=]NAME, ``given`` [METHOD.]NAME=VALUE.

    In order of precedence: options for one method, options for all, TorchRay's layers if ``torchray``, the layer of
    the network's CAMs. Some baselines depend on the ``dataset``. ``versions`` are METHOD=VERSION. ``ValueError`` for an
    option that no method has.
    """
    found = {name: find_method(name) for name in names if name not in BASELINES}
    options = {name: _own_options(method, arch, cam_layer, torchray) for name, method in found.items()}
    asked = [_owner(pair) for pair in given]
    asked_layers = [layer.rpartition("=")[::2] for layer in layers]
    for owner in dict.fromkeys(["", *(owner for owner, _ in [*asked_layers, *asked])]):
        _check_played("option", owner, ["", *found])
        layer = next((name for its, name in reversed(asked_layers) if its == owner), None)
        of_owner = [pair for its, pair in asked if its == owner]
        for name, chosen in choose_options([owner] if owner else [*found], layer, of_owner).items():
            options[name] |= chosen
    pairs: dict[str, tuple[Function, Options]] = {
        name: (method.function, options[name]) for name, method in found.items()
    }
    pairs |= {name: _baseline(name, dataset) for name in names if name in BASELINES}
    said = dict(text.partition("=")[::2] for text in versions)
    for name in said:
        _check_played("method_version", name, names)
    return {name: Explainer(*pairs[name], version=said[name]) if name in said else pairs[name] for name in names}


def _check_played(argument: str, name: str, names: Collection[str]) -> None:
    if name not in names:
        expected = ", ".join(filter(None, names))
        hint = did_you_mean(name, names)
        raise ValueError(f"{argument}={name!r} is not a method of this run{hint}; expected one of {expected}.")


def _baseline(name: str, dataset: Dataset | None) -> tuple[Function, Options]:
    row = BASELINES[name]
    return row.function, {} if row.prior is None or dataset is None else {"prior": row.prior(dataset)}


def _owner(pair: str) -> tuple[str, str]:
    """The method of [METHOD.]NAME=VALUE, or '', and the rest.

    >>> _owner("smooth_grad(my.module:f).n=0.5")
    ('smooth_grad(my.module:f)', 'n=0.5')
    """
    option, equals, value = pair.partition("=")
    owner, _, name = option.rpartition(".")
    return owner, f"{name}{equals}{value}"


def _own_options(method: Named, arch: str, cam_layer: str | None, torchray: bool) -> dict[str, object]:
    """The benchmark's options of a method; a function of the user's has none."""
    row = method.row
    options: dict[str, object] = {"smooth": SMOOTH[row]} if row in SMOOTH else {}
    if not row:
        return options
    if method.is_path:
        options["internal_batch_size"] = POINTS_AT_ONCE
    elif "shared" in method.options and row not in ATTENTION:  # they ask for a pass from the input on
        options["shared"] = True
    # An activation has no gradient to choose.
    if "get_backward_gradient" in method.options and row != "activation":
        options["get_backward_gradient"] = get_pointing_gradient
    layer = signature(METHODS[row].function).parameters.get("saliency_layer")
    if cam_layer is not None and layer is not None and layer.default is None and row not in ATTENTION:
        options["saliency_layer"] = cam_layer
    if arch in EMBEDDED:
        options |= SCENES_OPTIONS.get(row, {})
        options |= {"saliency_layer": SCENES_LAYERS[arch]} if row == "feature_ablation" else {}
    if torchray and row in TORCHRAY:
        family = next((found for prefix, found in TORCHRAY_LAYERS.items() if arch.startswith(prefix)), {})
        options.pop("smooth", None)
        options |= {**family.get(row, {}), **TORCHRAY_SMOOTH.get(row, {})}
    return options


def choose_metrics(
    asked: Sequence[str] | None, pairs: Iterable[str], tolerance: float | None
) -> dict[str, dict[str, object]]:
    """The metrics with their options; ``pairs`` are METRIC.NAME=VALUE. ``ValueError`` for a metric that is not run.

    >>> choose_metrics(["pointing_game"], ["pointing_game.tolerance=5"], None)
    {'pointing_game': {'tolerance': 5}}
    """
    names = [metric for name in asked or ["pointing_game"] for metric in (METRICS if name == "all" else [name])]
    metrics: dict[str, dict[str, object]] = {name: {} for name in named_metrics(names)}
    given = [] if tolerance is None else [f"pointing_game.tolerance={tolerance}"]
    for pair in [*given, *pairs]:
        option, _, value = pair.partition("=")
        metric, _, name = option.partition(".")
        if metric not in metrics or not name or not value:
            known = ", ".join(metrics)
            raise ValueError(
                f"metric_option={pair!r} is not for a metric of this run; expected METRIC.NAME=VALUE of {known}."
            )
        metrics[metric][name] = read_value(value)
    named_metrics(metrics)
    return metrics
