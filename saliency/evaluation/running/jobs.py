"""What a run is to find out: methods, metrics, and the configuration that each result depends on."""

from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from itertools import combinations
from types import MappingProxyType
from typing import Any, NamedTuple

from saliency.evaluation.metrics import METRICS
from saliency.evaluation.metrics.agreement import rank_correlation
from saliency.evaluation.networks.models import unknown
from saliency.evaluation.running.configuration import SESSION, Json, fingerprint_of, written, written_method
from saliency.evaluation.running.explaining import centre
from saliency.evaluation.running.scoring import AGREEMENT, Task


class Entrant(NamedTuple):
    """A method as it is given to a run. ``version`` stands for all that the function does, and those in its options.

    Without one, results of a function that is not installed are not reused by a later process.
    """

    function: Callable[..., Any]
    options: Mapping[str, Any] = MappingProxyType({})
    version: str | None = None


# Each method's name, with the method, or its function and options.
Methods = Mapping[str, Entrant | tuple[Callable[..., Any], Mapping[str, Any]]]


class Job(NamedTuple):
    """A task, and the configuration that its rows carry the fingerprint of; what has no version in it."""

    task: Task
    fingerprint: str
    configuration: dict[str, Any]
    unversioned: tuple[str, ...] = ()


def make_jobs(
    methods: Methods, metrics: Mapping[str, Mapping[str, Any]], setting: Mapping[str, Any], session: str = SESSION
) -> list[Job]:
    """A job for each method and metric, and for each pair of methods that agreement is measured of.

    ``setting`` is what all have in common; ``session`` is part of what depends on a function without a version.
    ``ValueError`` for an unknown metric or option of a metric.
    """
    check_metrics(metrics)
    for argument, value in (("methods", methods), ("metrics", metrics)):
        if not value:
            raise ValueError(f"{argument}={value!r} leave nothing to do; at least one is accepted.")
    tasks = [Task((name,), metric) for name in methods for metric in metrics if metric != AGREEMENT]
    if AGREEMENT in metrics:
        compared = sorted(name for name, given in methods.items() if given[0] is not centre)
        tasks += [Task(pair, AGREEMENT) for pair in combinations(compared, 2)]
    if not tasks:
        raise ValueError(f"methods={list(methods)!r} make no pair to agree; two, besides the centre, are accepted.")
    own: dict[str, list[str]] = {}
    settings = {name: _described(Entrant(*given), own.setdefault(name, [])) for name, given in methods.items()}
    common = {name: written(value) for name, value in setting.items()}
    jobs = []
    for task in tasks:
        unversioned = [function for name in task.methods for function in own[name]]
        configuration = {
            **common,
            "method": task.name,
            **_joined([settings[name] for name in task.methods], task.methods),
            "metric": task.metric,
            "metric_options": written(metrics[task.metric], unversioned),
            **({"session": session} if unversioned else {}),
        }
        jobs.append(Job(task, fingerprint_of(configuration), configuration, tuple(unversioned)))
    return jobs


def _described(entrant: Entrant, unversioned: list[str]) -> dict[str, Json]:
    return {
        "function": written_method(entrant.function, unversioned, entrant.version),
        "options": written(entrant.options, unversioned, entrant.version),
    }


def _joined(settings: Sequence[dict[str, Json]], names: Sequence[str]) -> dict[str, Json]:
    if len(settings) == 1:
        return settings[0]
    return {key: {name: own[key] for name, own in zip(names, settings, strict=True)} for key in settings[0]}


def check_metrics(metrics: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise ``ValueError`` for a metric that there is not, and for an option that it does not have."""
    for metric, options in metrics.items():
        if metric not in METRICS and metric != AGREEMENT:
            names: Sequence[str] = [*METRICS, AGREEMENT]
            raise unknown("metric", metric, names, f"accepted are {', '.join(names)}")
        known = list(signature(rank_correlation if metric == AGREEMENT else METRICS[metric].score).parameters)
        known = known[2 if metric == AGREEMENT else 1 :]
        for option in options:
            if option not in known:
                raise ValueError(f"metric_options={option!r} is no option of {metric}; {known} are accepted.")
