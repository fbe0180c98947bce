"""Scores of a batch: its images are explained by every method, and the maps of the cases measured by every metric."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import isfinite
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Module

from saliency.engine.outputs import main_output
from saliency.engine.state import evaluating, model_dtype, own_copy
from saliency.evaluation.metrics import METRICS, Evidence
from saliency.evaluation.metrics.agreement import rank_correlation
from saliency.evaluation.metrics.localisation import saliency_points
from saliency.evaluation.running.explaining import Explainer, explain_images, finish, isolate, since
from saliency.evaluation.running.loading import Sample

AGREEMENT = "agreement"


class Task(NamedTuple):
    """A method, or two whose maps are compared, and what measures their maps."""

    methods: tuple[str, ...]
    metric: str

    @property
    def name(self) -> str:
        """The method's name in a row."""
        return "|".join(self.methods)


class Score(NamedTuple):
    """What a metric says of one case, or why it says nothing. ``seconds`` is what it took."""

    score: float | None
    error: str | None = None
    seconds: float = 0
    curve: tuple[float, ...] | None = None
    point: tuple[int, int] | None = None
    constant: bool = False


class Bench(NamedTuple):
    """What computes scores: a network on its device, methods, and options of metrics.

    ``outputs`` are those of the network that stand for each class of the data set.
    """

    model: Module
    activation: Callable[[Tensor], Tensor]
    outputs: Sequence[Sequence[int]]
    explainers: Mapping[str, Explainer]
    metrics: Mapping[str, Mapping[str, Any]]
    device: torch.device


class Explained(NamedTuple):
    """The cases of a batch: each a sample, its place among that sample's classes, and the network's output.

    ``maps`` has for each method the map (h, w) of every case, or what went wrong, ``seconds`` what one
    of them took, for each task that it serves.
    """

    samples: Sequence[Sample | str]
    inputs: dict[int, Tensor]
    places: list[tuple[int, int]]
    targets: dict[int, Tensor]
    maps: dict[str, list[Tensor | str]]
    seconds: dict[str, float]


def explain_samples(
    bench: Bench, samples: Sequence[Sample | str], labels: Sequence[Sequence[int]], uses: Mapping[str, int]
) -> Explained:
    """The samples, explained for their classes by the methods; a text in place of one says what is wrong with it.

    ``uses`` says how many tasks share the time that a method's maps take.
    """
    places = [(at, column) for at, own in enumerate(labels) for column in range(len(own))]
    dtype = model_dtype(bench.model, torch.zeros(0))
    inputs = {at: one.input.to(bench.device, dtype) for at, one in enumerate(samples) if isinstance(one, Sample)}
    outputs: dict[int, Tensor | str] = {at: sample for at, sample in enumerate(samples) if isinstance(sample, str)}
    if inputs:
        outputs |= isolate(partial(_choose, bench, inputs, labels), list(inputs))
    targets = {at: found.to(bench.device) for at, found in outputs.items() if isinstance(found, Tensor)}
    problems = {at: found for at, found in outputs.items() if isinstance(found, str)}
    maps: dict[str, dict[int, Tensor | str]] = {name: {} for name in uses}
    seconds = dict.fromkeys(uses, 0.0)
    if targets:
        batch = torch.stack([inputs[at] for at in targets]), torch.stack(list(targets.values()))
        explained, seconds = explain_images(bench.model, *batch, {name: bench.explainers[name] for name in uses})
        maps = {name: dict(zip(targets, found.values(), strict=True)) for name, found in explained.items()}
    by_case = {name: [_map_of(found | problems, *place) for place in places] for name, found in maps.items()}
    seconds = {name: spent / len(places) / uses[name] for name, spent in seconds.items()}
    return Explained(samples, inputs, places, targets, by_case, seconds)


def _choose(
    bench: Bench, inputs: Mapping[int, Tensor], labels: Sequence[Sequence[int]], chosen: list[int]
) -> Sequence[Tensor]:
    return choose_outputs(bench.model, bench.outputs, [inputs[at] for at in chosen], [labels[at] for at in chosen])


def _map_of(maps: Mapping[int, Tensor | str], at: int, column: int) -> Tensor | str:
    found = maps[at]
    if isinstance(found, str):
        return found
    return found[column] if found[column].isfinite().all() else "ValueError: the map holds NaN or infinity."


def choose_outputs(
    model: Module, outputs: Sequence[Sequence[int]], inputs: list[Tensor], labels: Sequence[Sequence[int]]
) -> Sequence[Tensor]:
    """For each image the outputs (K,) that its classes mean: where several stand for one, that which scores highest."""
    choices = [[list(outputs[label]) for label in own] for own in labels]
    if all(len(choice) == 1 for own in choices for choice in own):
        return torch.tensor(choices).squeeze(2).unbind()
    with evaluating(model):
        scores: Tensor = main_output(model(torch.stack(inputs)))
    scores = scores.flatten(2).mean(2).cpu() if scores.ndim > 2 else scores.cpu()
    best = [[choice[int(row[choice].argmax())] for choice in own] for row, own in zip(scores, choices, strict=True)]
    return torch.tensor(best).unbind()


def score_task(
    bench: Bench, explained: Explained, task: Task, evidence: Callable[[str, tuple[int, ...]], Evidence]
) -> list[Score]:
    """The scores of all cases, as many at once as have the same size. ``evidence`` is that of :func:`make_evidence`."""
    scores: dict[int, Score] = {}
    groups: dict[tuple[int, ...], list[int]] = {}
    explaining = sum(explained.seconds[name] for name in task.methods)
    for case, (at, _) in enumerate(explained.places):
        problem = next((found for name in task.methods if isinstance(found := explained.maps[name][case], str)), None)
        sample = explained.samples[at]
        if problem is not None or isinstance(sample, str):
            scores[case] = Score(None, problem, explaining)
        else:
            groups.setdefault(tuple(sample.image.shape), []).append(case)

    def measure(cases: list[int]) -> list[Score]:
        if task.metric == AGREEMENT:
            pair = [_input_maps(bench, explained, name, cases) for name in task.methods]
            return [Score(score) for score in rank_correlation(pair[0], pair[1], **bench.metrics[AGREEMENT]).tolist()]
        return apply_metric(task.metric, bench.metrics[task.metric], evidence(task.name, tuple(cases)))

    for cases in groups.values():
        begin = time.perf_counter()
        measured = isolate(measure, cases)
        seconds = since(begin, bench.device) / len(cases) + explaining
        for case, score in measured.items():
            checked = Score(None, score) if isinstance(score, str) else score
            scores[case] = checked._replace(seconds=seconds)
    return [scores[case] for case in range(len(explained.places))]


def apply_metric(metric: str, options: Mapping[str, Any], evidence: Evidence) -> list[Score]:
    """The scores of the cases, with their curves where the metric has some, and the maxima of the maps."""
    found = METRICS[metric].score(evidence, **options)
    area = METRICS[metric].area
    curves = [None] * len(found) if area is None else [tuple(curve) for curve in found.double().tolist()]
    scores = (found if area is None else area(found)).double().tolist()
    constant = (evidence.saliency.amax((1, 2, 3)) == evidence.saliency.amin((1, 2, 3))).tolist()
    places = zip(saliency_points(evidence.saliency).tolist(), constant, strict=True)
    points = [None if same else (x, y) for (x, y), same in places]
    return [
        Score(score, curve=curve, point=point, constant=same)
        if isfinite(score) and all(map(isfinite, curve or ()))
        else Score(None, f"ValueError: the score is {score}.", point=point, constant=same)
        for score, curve, point, same in zip(scores, curves, points, constant, strict=True)
    ]


def _input_maps(bench: Bench, explained: Explained, method: str, cases: Sequence[int]) -> Tensor:
    maps: Any = [explained.maps[method][case] for case in cases]
    height, width = explained.inputs[explained.places[cases[0]][0]].shape[1:]
    return finish(bench.explainers[method], torch.stack(maps)[:, None], (height, width))


def make_evidence(bench: Bench, explained: Explained, method: str, cases: tuple[int, ...]) -> Evidence:
    """All that is known about some cases, which have one size."""
    explainer = bench.explainers[method]
    places = [explained.places[case] for case in cases]
    samples: Any = [explained.samples[at] for at, _ in places]
    maps: Any = [explained.maps[method][case] for case in cases]
    height, width = samples[0].image.shape[1:]
    saliency = finish(explainer, torch.stack(maps)[:, None], (height, width))
    input = torch.stack([explained.inputs[at] for at, _ in places])
    same = input.shape[2:] == saliency.shape[2:]

    def explain(model: Module, input: Tensor, target: Tensor) -> Tensor:
        maps = explainer.function(model, own_copy(input), own_copy(target), **explainer.options)
        return finish(explainer, maps, (input.shape[2], input.shape[3]))

    return Evidence(
        saliency=saliency,
        masks=torch.stack([s.masks[column] for s, (_, column) in zip(samples, places, strict=True)]).to(bench.device),
        boxes=[s.boxes[column].to(bench.device) for s, (_, column) in zip(samples, places, strict=True)],
        model=bench.model,
        input=input,
        input_saliency=saliency if same else _input_maps(bench, explained, method, cases),
        target=torch.stack([explained.targets[at][column] for at, column in places]),
        activation=bench.activation,
        explain=explain,
    )
