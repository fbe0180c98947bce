"""What a run is to find out: methods, metrics, and the configuration that each result hangs on."""

from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from itertools import combinations
from typing import Any, NamedTuple

from saliency.evaluation.metrics import METRICS
from saliency.evaluation.metrics.agreement import rank_correlation
from saliency.evaluation.networks.models import unknown
from saliency.evaluation.running.configuration import fingerprint_of
from saliency.evaluation.running.explaining import centre
from saliency.evaluation.running.scoring import AGREEMENT, Task

Methods = Mapping[str, tuple[Callable[..., Any], Mapping[str, Any]]]


class Job(NamedTuple):
    """A task, and the configuration that its rows carry the fingerprint of."""

    task: Task
    fingerprint: str
    configuration: dict[str, Any]


def make_jobs(methods: Methods, metrics: Mapping[str, Mapping[str, Any]], setting: Mapping[str, Any]) -> list[Job]:
    """A job for each method and metric, and for each pair of methods that agreement is measured of.

    ``setting`` is what all have in common. ``ValueError`` for an unknown metric or option of a metric.
    """
    check_metrics(metrics)
    for argument, value in (("methods", methods), ("metrics", metrics)):
        if not value:
            raise ValueError(f"{argument}={value!r} leave nothing to do; at least one is accepted.")
    tasks = [Task((name,), metric) for name in methods for metric in metrics if metric != AGREEMENT]
    if AGREEMENT in metrics:
        compared = sorted(name for name, (function, _) in methods.items() if function is not centre)
        tasks += [Task(pair, AGREEMENT) for pair in combinations(compared, 2)]
    if not tasks:
        raise ValueError(f"methods={list(methods)!r} make no pair to agree; two, besides the centre, are accepted.")
    return [_job(task, methods, metrics[task.metric], setting) for task in tasks]


def _job(task: Task, methods: Methods, metric_options: Mapping[str, Any], setting: Mapping[str, Any]) -> Job:
    functions = [methods[name][0] for name in task.methods]
    options = [dict(methods[name][1]) for name in task.methods]
    single = len(functions) == 1
    configuration = {
        **setting,
        "method": task.name,
        "function": functions[0] if single else functions,
        "options": options[0] if single else dict(zip(task.methods, options, strict=True)),
        "metric": task.metric,
        "metric_options": dict(metric_options),
    }
    return Job(task, fingerprint_of(configuration), configuration)


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
