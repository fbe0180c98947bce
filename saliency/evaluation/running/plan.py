"""The plan of a run: its cases in batches, and its jobs, each a method, a metric and what else a result depends on."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from itertools import chain, combinations, groupby, islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import torch
from torch.nn import Module

from saliency.engine.layers import Layer, resolve_layer
from saliency.engine.maps import check_map_options
from saliency.engine.state import model_device
from saliency.evaluation.cases import Annotation, Case, Dataset, Images, labels_of
from saliency.evaluation.metrics import METRICS
from saliency.evaluation.running.configuration import SESSION, Json, fingerprint_of, written
from saliency.networks.models import Recipe, unknown
from saliency.networks.preprocessing import input_size

DECIDED = ("resize", "debug")  # options that the runner sets, or cannot use
FINISHING = ("smooth", "resize_mode", "shared")  # options that it takes for itself

Options: TypeAlias = Mapping[str, Any]
Names: TypeAlias = tuple[str, ...]


class Explainer(NamedTuple):
    """A method with its options; ``smooth`` and ``resize_mode`` are applied when a map gets its size.

    ``shared=True`` says that the method takes a :func:`saliency.shared_forward`. ``version`` stands for all that the
    function does, and those in its options: without one, a later process reuses no result of what is not installed.
    """

    function: Callable[..., Any]
    options: Options = MappingProxyType({})
    version: str | None = None

    @property
    def passed(self) -> dict[str, Any]:
        """The options that the function is called with."""
        return {name: value for name, value in self.options.items() if name not in FINISHING}

    @property
    def layers(self) -> list[Layer]:
        """The layer that the method looks at, if that is said."""
        default = signature(self.function).parameters.get("saliency_layer")
        layer = self.options.get("saliency_layer", "" if default is None else default.default)
        return [layer] if layer is None or isinstance(layer, (str, Module)) else []

    @property
    def draws(self) -> bool:
        """Whether its map is of any size that is asked for, and shows nothing of the image."""
        return "map_size" in signature(self.function).parameters

    def check(self, name: str, model: Module) -> None:
        """Raise ``ValueError`` for an option that is the runner's, and for a layer that the network has not."""
        check_map_options(False, self.options.get("resize_mode", "bilinear"), self.options.get("smooth", 0), None)
        for option, value in self.options.items():
            if option in DECIDED:
                raise ValueError(f"options={option!r} of {name} is not for a benchmark to choose; others are accepted.")
            if option.endswith("_layer") and isinstance(value, str):
                resolve_layer(model, value, option)


# Each method's name, with the method, or its function and options.
Methods: TypeAlias = Mapping[str, Explainer | tuple[Callable[..., Any], Options]]


class Job(NamedTuple):
    """A method, or two that are compared, and a metric. Its results carry the fingerprint of its configuration.

    ``of`` is that of the job whose results a metric of the whole data set looks at, without any of its own.
    ``unversioned`` are the functions that only this process knows.
    """

    methods: Names
    metric: str
    options: Options
    configuration: dict[str, Json]
    fingerprint: str
    unversioned: tuple[str, ...]
    of: str = ""

    @property
    def name(self) -> str:
        """The method's name in a result."""
        return "|".join(self.methods)


@dataclass(frozen=True)
class Run:
    """What is computed, from what, and where the results go; the first ``gallery`` images with pictures.

    ``outputs`` are those of the network that stand for each class of the data set.
    """

    dataset: Dataset
    model: Module
    recipe: Recipe
    outputs: Sequence[Sequence[int]]
    explainers: Mapping[str, Explainer]
    jobs: list[Job]
    batches: list[Images]
    out: Path
    gallery: int

    @cached_property
    def cases(self) -> dict[tuple[str, int], Case]:
        """The planned cases by their keys."""
        return {case.key: case for batch in self.batches for case in chain.from_iterable(batch)}

    @cached_property
    def device(self) -> torch.device:
        """Where the network is."""
        return model_device(self.model)


def make_jobs(
    methods: Methods, metrics: Mapping[str, Options], setting: Mapping[str, object], session: str = SESSION
) -> list[Job]:
    """A job for each method and metric, and for each pair of methods where the metric compares two.

    ``setting`` is what all have in common; ``session`` is part of what depends on a function without a version. A
    metric of the whole data set brings the one that it looks at. ``ValueError`` for an unknown metric or option.
    """
    for argument, value in (("methods", methods), ("metrics", metrics)):
        if not value:
            raise ValueError(f"{argument}={value!r} leave nothing to do; at least one is accepted.")
    check_metrics(metrics)
    metrics = dict(metrics) | {of: {} for name in metrics if (of := METRICS[name].of) and of not in metrics}
    explainers = {name: Explainer(*given) for name, given in methods.items()}
    common = {name: written(value) for name, value in setting.items()}
    own: dict[str, list[str]] = {name: [] for name in explainers}
    described = {name: _described(explainer, own[name]) for name, explainer in explainers.items()}
    jobs: dict[tuple[Names, str], Job] = {}
    for names, metric in _tasks(explainers, metrics):
        unversioned = [function for name in names for function in own[name]]
        configuration: dict[str, Json] = {
            **common,
            "method": "|".join(names),
            **(described[names[0]] if len(names) == 1 else {"methods": {name: described[name] for name in names}}),
            "metric": metric,
            "metric_function": written(METRICS[metric].function, unversioned),
            "metric_options": written(metrics[metric], unversioned),
        }
        of = jobs[names, METRICS[metric].of].fingerprint if METRICS[metric].of else ""
        configuration |= ({"of": of} if of else {}) | ({"session": session} if unversioned else {})
        fingerprint = fingerprint_of(configuration)
        jobs[names, metric] = Job(names, metric, metrics[metric], configuration, fingerprint, tuple(unversioned), of)
    return list(jobs.values())


def _tasks(explainers: Mapping[str, Explainer], metrics: Mapping[str, Options]) -> list[tuple[Names, str]]:
    """Which methods are measured by which metric; method by method, since the metrics of one share its maps."""
    seeing = sorted(name for name, explainer in explainers.items() if not explainer.draws)
    kinds: dict[str, list[Names]] = {"case": [(name,) for name in explainers], "pair": [*combinations(seeing, 2)]}
    kinds["data set"] = kinds["case"]
    tasks = [(own, one) for kind in kinds for own in kinds[kind] for one in metrics if METRICS[one].kind == kind]
    if not tasks:
        raise ValueError(f"methods={[*explainers]!r} make no pair to compare; two that see the image are accepted.")
    return tasks


def _described(explainer: Explainer, unversioned: list[str]) -> dict[str, Json]:
    """What of a method a result depends on."""
    parts = {"function": explainer.function, "options": explainer.options}
    return {part: written(value, unversioned, explainer.version) for part, value in parts.items()}


def check_metrics(metrics: Mapping[str, Options]) -> None:
    """Raise ``ValueError`` for a metric that there is not, and for an option that it does not have."""
    for metric, options in metrics.items():
        if metric not in METRICS:
            raise unknown("metric", metric, list(METRICS), f"accepted are {', '.join(METRICS)}")
        known = list(METRICS[metric].defaults)
        for option in options:
            if option not in known:
                raise ValueError(f"metric_options={option!r} is no option of {metric}; {known} are accepted.")


def plan_batches(
    annotations: Sequence[Annotation],
    recipe: Recipe,
    batch_size: int = 8,
    limit: int | None = None,
    without: Collection[int] = (),
) -> list[Images]:
    """The batches of the first ``limit`` cases, of at most ``batch_size`` images each, ``without`` some classes.

    They follow from the arguments alone, so a result does not depend on which process computes it, or when.
    ``ValueError`` for a limit or batch size below 1.

    >>> from saliency.evaluation.cases import Thing
    >>> thing = Thing(3, (0, 0, 2, 2))
    >>> square, wide = Annotation("a", (9, 9), (thing,)), Annotation("b", (9, 12), (thing,))
    >>> recipe = Recipe(9, 1, False, (), (), ())
    >>> [[cases[0].index for cases in batch] for batch in plan_batches([square, wide, square], recipe)]
    [[0, 2], [1]]
    """
    for argument, value in (("batch_size", batch_size), ("limit", limit)):
        if value is not None and value < 1:
            raise ValueError(f"{argument}={value!r} is no number of cases; a whole number >= 1 is accepted.")
    cases_of = (
        Case(index, annotation, label)
        for index, annotation in enumerate(annotations)
        for label in labels_of(annotation)
        if label not in without
    )
    sizes: dict[tuple[int, int], tuple[int, int]] = {}
    filling: dict[tuple[tuple[int, int], int], list[list[Case]]] = {}
    full: list[Images] = []
    for _, own in groupby(islice(cases_of, limit), lambda case: case.index):
        cases = list(own)
        size = cases[0].annotation.size
        if size not in sizes:
            sizes[size] = input_size(size, recipe)
        batch = filling.setdefault((sizes[size], len(cases)), [])
        batch.append(cases)
        if len(batch) == batch_size:
            full.append(list(batch))
            batch.clear()
    return full + [batch for batch in filling.values() if batch]
