"""The cases of a batch read, explained by every method and scored by every metric; each failure is a case's own."""

import time
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property, partial
from itertools import chain
from math import isfinite
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor
from torch.nn import Module

from saliency.engine.outputs import main_output
from saliency.engine.shared import SharedForward
from saliency.engine.state import evaluating, model_dtype, own_copy
from saliency.evaluation.cases import Case, Images
from saliency.evaluation.explainers import Explainer, attempt
from saliency.evaluation.metrics import METRICS
from saliency.evaluation.metrics.localisation import saliency_points
from saliency.evaluation.metrics.perturbed import class_softmax
from saliency.evaluation.printing import describe_error
from saliency.evaluation.running.plan import Job, Run
from saliency.evaluation.running.store import Result
from saliency.rules import shared_forward

Item = TypeVar("Item")

Drawn: TypeAlias = tuple[Tensor | Exception, float]  # a method's maps, and the seconds that they took

AHEAD = 2  # batches
READERS = 4  # threads


def isolate(work: Callable[[list[Item]], None], items: list[Item], fail: Callable[[Item, str], None]) -> None:
    """Do the work on all items at once; if that raises, on one at a time; an item that fails then gets its error."""
    error = attempt(partial(work, items))
    if error is None:
        return
    if len(items) == 1:
        fail(items[0], describe_error(error))
        return
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    for item in items:
        isolate(work, [item], fail)


def load_batches(
    batches: Iterable[Images], load: Callable[[Sequence[Case]], list[Case]]
) -> Generator[Images, None, None]:
    """Yield the loaded images of every batch; the next are loaded meanwhile, in threads."""
    pool = ThreadPoolExecutor(READERS, thread_name_prefix="load")
    waiting: deque[list[Future[list[Case]]]] = deque([[]] * AHEAD)
    try:
        for batch in chain(batches, [()] * AHEAD):
            waiting.append([pool.submit(load, cases) for cases in batch])
            if loaded := [future.result() for future in waiting.popleft()]:
                yield loaded
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def choose_targets(model: Module, outputs: Sequence[Sequence[int]], images: Images) -> None:
    """Give each case its output of the network: of several for its class, the one with the highest score."""
    scores = None
    if any(len(outputs[case.label]) > 1 for cases in images for case in cases):
        with evaluating(model):
            scores = main_output(model(torch.stack([cases[0].input for cases in images])))
        scores = (scores.flatten(2).mean(2) if scores.ndim > 2 else scores).cpu()
    for row, cases in enumerate(images):
        for case in cases:
            choice = list(outputs[case.label])
            case.target = choice[0 if scores is None else int(scores[row, choice].argmax())]


def explain_cases(run: Run, images: Images, uses: Mapping[str, int]) -> None:
    """Give every case its target, and its maps by the methods, or what went wrong.

    All images are explained at once where that works. ``uses`` says how many jobs share the time of a method's maps.
    """

    def fail(name: str, cases: Sequence[Case], problem: str) -> None:
        for case in cases:
            case.errors[name] = problem

    dtype = model_dtype(run.model, torch.zeros(0, device="cpu"))
    for case in chain.from_iterable(_sound(images)):
        case.input = case.input.to(run.device, dtype)
    isolate(partial(choose_targets, run.model, run.outputs), _sound(images), partial(fail, ""))
    if not (sound := _sound(images)):
        return
    explainers = {name: run.explainers[name] for name in uses}
    drawn = attempt(lambda: explain_each(run.model, *_stacked(run, sound), explainers, sound[0][0].index))
    together = {} if isinstance(drawn, Exception) else drawn
    for name in uses:
        isolate(partial(_add_maps, run, name, uses[name], together), sound, partial(fail, name))


def _sound(images: Images) -> list[Sequence[Case]]:
    return [cases for cases in images if not cases[0].errors]


def _stacked(run: Run, images: Images) -> tuple[Tensor, Tensor]:
    """The input (N, C, h, w) and the targets (N, K) of the images."""
    targets = torch.tensor([[case.target for case in cases] for cases in images], device=run.device)
    return torch.stack([cases[0].input for cases in images]), targets


def _add_maps(run: Run, name: str, uses: int, drawn: dict[str, Drawn], images: Images) -> None:
    """Give the cases their maps; a method that is not in ``drawn`` is run now."""
    if name not in drawn:
        drawn = explain_each(run.model, *_stacked(run, images), {name: run.explainers[name]}, images[0][0].index)
    maps, seconds = drawn.pop(name)
    cases = sum(len(own) for own in images)
    for case in chain.from_iterable(images):
        case.seconds[name] = case.seconds.get(name, 0) + seconds / uses / cases
    if isinstance(maps, Exception):
        raise maps
    for image, own in zip(images, maps, strict=True):
        for case, map in zip(image, own, strict=True):
            if map.isfinite().all():
                case.maps[name] = map
            else:
                case.errors[name] = "ValueError: the map holds NaN or infinity."


def explain_each(
    model: Module, input: Tensor, targets: Tensor, explainers: Mapping[str, Explainer], seed: int = 0
) -> dict[str, Drawn]:
    """Maps (N, K, h, w) of every method, or the exception that it raised, and the seconds it took.

    Those that can share a forward pass do so, each charged its part of that time. Every method draws global
    random numbers from the ``seed``, whatever the others draw.
    """
    found: dict[str, Drawn] = {}
    sharing = {name: explainer.layers for name, explainer in explainers.items() if explainer.options.get("shared")}
    layers = list(dict.fromkeys(layer for own in sharing.values() for layer in own))
    begin = time.perf_counter()
    common = own_copy(input)
    shared = attempt(partial(shared_forward, model, common, layers)) if layers else None
    each = since(begin, input.device) / max(1, len(sharing))
    for name, explainer in explainers.items():
        sharer = name in sharing and isinstance(shared, SharedForward)
        options, own = ({"shared": shared}, common) if sharer else ({}, input)
        begin = time.perf_counter()
        maps = attempt(partial(explainer.maps, model, own, targets, seed, **options))
        found[name] = maps, since(begin, input.device) + each * (name in sharing)
    return found


def since(begin: float, device: torch.device) -> float:
    """The seconds since then, including work still queued on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


class Evidence:
    """What a metric may look at: some cases with images of one size, and their maps by a method."""

    def __init__(self, run: Run, method: str, cases: tuple[Case, ...]) -> None:
        self.method, self.cases, self.explainer = method, cases, run.explainers[method]
        self.model = run.model
        self.activation = torch.sigmoid if run.preprocessing.multi_label else class_softmax
        self.input = torch.stack([case.input for case in cases])
        self.target = torch.tensor([case.target for case in cases], device=run.device)
        self.masks = torch.stack([case.mask for case in cases]).to(run.device)
        self.boxes = [case.boxes.to(run.device) for case in cases]

    def of(self, names: Collection[str]) -> dict[str, Any]:
        """Each by its name; beside an input, the maps are of its size."""
        maps = {"saliency": "input_saliency"} if "input" in names else {}
        return {name: getattr(self, maps.get(name, name)) for name in names}

    @cached_property
    def saliency(self) -> Tensor:
        return self._sized(tuple(self.cases[0].image.shape[1:]))

    @cached_property
    def input_saliency(self) -> Tensor:
        same = self.cases[0].image.shape[1:] == self.cases[0].input.shape[1:]
        return self.saliency if same else self._sized(tuple(self.cases[0].input.shape[1:]))

    def _sized(self, size: tuple[int, ...]) -> Tensor:
        maps = torch.stack([case.maps[self.method] for case in self.cases])[:, None]
        if self.explainer.draws and maps.shape[2:] != size:
            maps = self.explainer.maps(self.model, self.input, self.target[:, None], map_size=size)
        return self.explainer.finish(maps, (size[0], size[1]))

    def explain(self, model: Module, input: Tensor, target: Tensor) -> Tensor:
        maps = self.explainer.maps(model, input, target[:, None], self.cases[0].index)
        return self.explainer.finish(maps, (input.shape[2], input.shape[3]))


def score_cases(job: Job, cases: Sequence[Case], evidence: Callable[[str, tuple[Case, ...]], Evidence]) -> list[Result]:
    """The results of all cases, as many at once as have images of one size."""
    results: dict[Case, Result] = {}
    groups: dict[tuple[int, ...], list[Case]] = defaultdict(list)

    def fail(case: Case, problem: str) -> None:
        results[case] = _result(job, case, None, problem)

    def measure(chosen: list[Case]) -> None:
        known = [evidence(name, tuple(chosen)) for name in job.methods]
        results.update(zip(chosen, apply_metric(job, chosen, known), strict=True))

    for case in cases:
        if problem := case.error_of(*job.methods):
            fail(case, problem)
        else:
            groups[tuple(case.image.shape)].append(case)
    for own in groups.values():
        begin = time.perf_counter()
        isolate(measure, own, fail)
        seconds = since(begin, own[0].input.device) / len(own)
        for case in own:
            results[case] = results[case]._replace(seconds=results[case].seconds + seconds)
    return [results[case] for case in cases]


def _result(job: Job, case: Case, score: float | None, error: str | None, *found: Any) -> Result:
    seconds = sum(case.seconds.get(name, 0) for name in job.methods)
    return Result(*case.key, job.name, job.metric, score, seconds, error, job.fingerprint, case.difficult, *found)


def apply_metric(job: Job, cases: Sequence[Case], evidence: Sequence[Evidence]) -> list[Result]:
    """The results of the cases, with their curves where the metric has some, and the maxima of a method's maps."""
    metric, first = METRICS[job.metric], evidence[0]
    options = {**metric.options, **job.options}
    if metric.kind == "pair":
        found = metric.function(*(one.input_saliency for one in evidence), **options)
    else:
        found = metric.function(**first.of(metric.evidence), **options)
    maxima = [(None, False)] * len(cases) if metric.kind == "pair" else _maxima(first.saliency)
    curves = [None] * len(found) if metric.area is None else [tuple(curve) for curve in found.double().tolist()]
    scores = (found if metric.area is None else metric.area(found)).double().tolist()
    return [
        _result(job, case, score, None, curve, *maximum)
        if isfinite(score) and all(map(isfinite, curve or ()))
        else _result(job, case, None, f"ValueError: the score is {score}.", None, *maximum)
        for case, score, curve, maximum in zip(cases, scores, curves, maxima, strict=True)
    ]


def _maxima(maps: Tensor) -> list[tuple[tuple[int, int] | None, bool]]:
    """The positions (x, y) of the maps' maxima, and which maps are constant: those have no maximum."""
    constant = (maps.amax((1, 2, 3)) == maps.amin((1, 2, 3))).tolist()
    points = saliency_points(maps).tolist()
    return [(None if same else (x, y), same) for (x, y), same in zip(points, constant, strict=True)]
