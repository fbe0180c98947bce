"""The plan of a run: its cases in batches, and its jobs, each a method, a metric and what else a result depends on."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, combinations, groupby, islice
from pathlib import Path
from typing import NamedTuple, TypeAlias

import torch
from torch.nn import Module

from saliency.engine.checks import check_model, check_type, did_you_mean, is_int, is_positive_int, shown
from saliency.engine.state import model_device
from saliency.evaluation.cases import Annotation, Case, Dataset, Images, labels_of
from saliency.evaluation.explainers import Explainer, Methods, Options, named_methods
from saliency.evaluation.metrics import METRICS
from saliency.evaluation.running.configuration import SESSION, Json, fingerprint_of, written
from saliency.networks.names import unknown
from saliency.networks.preprocessing import Preprocessing, input_size

Names: TypeAlias = tuple[str, ...]
Metrics: TypeAlias = str | Sequence[str] | Mapping[str, Options]


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
    preprocessing: Preprocessing
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


def check_setting(
    dataset: object, model: object, preprocessing: object, outputs: Sequence[Sequence[int]] | None
) -> None:
    """Raise ``ValueError`` for what is not a data set, a network or its preprocessing, and outputs of other classes."""
    for part in ("name", "root", "source", "classes", "annotations", "problems", "image"):
        if not hasattr(dataset, part):
            raise ValueError(
                f"dataset={shown(dataset)} has no {part!r}; expected what load_dataset returns, or like it."
            )
    check_model(model)
    check_type(
        "preprocessing",
        preprocessing,
        Preprocessing,
        "what the network expects of a photo, as preprocessing('resnet50')",
    )
    classes = len(getattr(dataset, "classes", ()))
    if outputs is not None and (not isinstance(outputs, (list, tuple)) or len(outputs) != classes):
        raise ValueError(f"outputs={shown(outputs)} are not those of {classes} classes; expected a list for each.")
    for own in outputs or ():
        if not isinstance(own, (list, tuple)) or not all(is_int(index) and index >= 0 for index in own):
            raise ValueError(f"outputs={shown(own)} of a class are not indices; expected a list of ints >= 0.")


def make_jobs(methods: Methods, metrics: Metrics, setting: Mapping[str, object], session: str = SESSION) -> list[Job]:
    """A job for each method and metric, and for each pair of methods where the metric compares two.

    ``setting`` is what all have in common; ``session`` is part of what depends on a function without a version. A
    metric of the whole data set brings the one that it looks at. ``ValueError`` for an unknown metric or option.
    """
    explainers, asked = named_methods(methods), named_metrics(metrics)
    if not explainers:
        raise ValueError(f"methods={methods!r} leaves nothing to do; expected at least one.")
    metrics = asked | {of: {} for name in asked if (of := METRICS[name].of) and of not in asked}
    common = {name: written(value) for name, value in setting.items()}
    unversioned: dict[str, list[str]] = {name: [] for name in explainers}
    described = {name: _described(one, unversioned[name], session) for name, one in explainers.items()}
    jobs: dict[tuple[Names, str], Job] = {}
    for names, metric in _tasks(explainers, metrics):
        row, measuring = METRICS[metric], list[str]()
        configuration: dict[str, Json] = {
            **common,
            "method": "|".join(names),
            **(described[names[0]] if len(names) == 1 else {"methods": {name: described[name] for name in names}}),
            "metric": metric,
            "metric_function": written((row.function, row.area, row.options), measuring, row.version),
            "metric_options": written(metrics[metric], measuring, row.version),
        }
        of = jobs[names, row.of].fingerprint if row.of else ""
        configuration |= ({"of": of} if of else {}) | ({"metric_session": session} if measuring else {})
        unknown_here = (*chain.from_iterable(unversioned[name] for name in names), *measuring)
        fingerprint = fingerprint_of(configuration)
        jobs[names, metric] = Job(names, metric, metrics[metric], configuration, fingerprint, unknown_here, of)
    return list(jobs.values())


def _tasks(explainers: Mapping[str, Explainer], metrics: Mapping[str, Options]) -> list[tuple[Names, str]]:
    """Which methods are measured by which metric; method by method, since the metrics of one share its maps."""
    seeing = sorted(name for name, explainer in explainers.items() if not explainer.draws)
    kinds: dict[str, list[Names]] = {"case": [(name,) for name in explainers], "pair": [*combinations(seeing, 2)]}
    kinds["data set"] = kinds["case"]
    tasks = [(own, one) for kind in kinds for own in kinds[kind] for one in metrics if METRICS[one].kind == kind]
    if not tasks:
        raise ValueError(f"methods={[*explainers]!r} leave no pair to compare; expected two that see the image.")
    return tasks


def _described(explainer: Explainer, unversioned: list[str], session: str) -> dict[str, Json]:
    """What of a method a result depends on."""
    parts = {"function": explainer.function, "options": explainer.options}
    described = {part: written(value, unversioned, explainer.version) for part, value in parts.items()}
    return described | ({"session": session} if unversioned else {})


def named_metrics(metrics: Metrics) -> dict[str, Options]:
    """The options of each metric. ``ValueError`` for a metric that there is not, and an option that it does not have.

    >>> named_metrics("insertion"), named_metrics(["pointing_game", "deletion"])
    ({'insertion': {}}, {'pointing_game': {}, 'deletion': {}})
    """
    listed = [metrics] if isinstance(metrics, str) else metrics
    if not isinstance(listed, (Mapping, list, tuple)) or not listed:
        raise ValueError(f"metrics={shown(metrics)} names no metric; expected names, or the options of each by name.")
    named = dict(listed) if isinstance(listed, Mapping) else {name: {} for name in map(str, listed)}
    for metric, options in named.items():
        if metric not in METRICS:
            raise unknown("metric", str(metric), list(METRICS), f"expected one of {', '.join(METRICS)}")
        known = list(METRICS[metric].defaults)
        if not isinstance(options, Mapping):
            raise ValueError(f"metric_options={shown(options)} of {metric} is not a dict; expected some of {known}.")
        for option in options:
            if option not in known:
                hint = did_you_mean(str(option), known)
                raise ValueError(
                    f"metric_option={option!r} is not an option of {metric}{hint}; expected one of {known}."
                )
    return named


def plan_batches(
    annotations: Sequence[Annotation],
    preprocessing: Preprocessing,
    batch_size: int,
    limit: int | None = None,
    without: Collection[int] = (),
) -> list[Images]:
    """The batches of the first ``limit`` cases, of at most ``batch_size`` images each, ``without`` some classes.

    They follow from the arguments alone, so a result does not depend on which process computes it, or when.
    ``ValueError`` for a limit or batch size below 1.

    >>> from saliency.evaluation.cases import Instance
    >>> instance = Instance(3, (0, 0, 2, 2))
    >>> square, wide = Annotation("a", (9, 9), (instance,)), Annotation("b", (9, 12), (instance,))
    >>> preprocessing = Preprocessing(9, 1, False, (), (), ())
    >>> [[cases[0].index for cases in batch] for batch in plan_batches([square, wide, square], preprocessing, 8)]
    [[0, 2], [1]]
    """
    for argument, value in (("batch_size", batch_size), ("limit", limit)):
        if value is not None and not is_positive_int(value):
            raise ValueError(f"{argument}={shown(value)} is not a number of cases; expected a whole number >= 1.")
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
            sizes[size] = input_size(size, preprocessing)
        batch = filling.setdefault((sizes[size], len(cases)), [])
        batch.append(cases)
        if len(batch) == batch_size:
            full.append(list(batch))
            batch.clear()
    return full + [batch for batch in filling.values() if batch]
