"""Walking: gradients at all steps of a path, folded into one tensor per sample, site and target.

Two samples, a path of 3 steps and chunks of 4 points: the first chunk holds steps 0, 1, 2 of sample 0 and step 0 of
sample 1; the second steps 1, 2 of sample 1. After the first chunk, sample 0 is folded, and of sample 1 only the partial
sum is kept.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from saliency.engine.call import Call
from saliency.engine.comparing import compare
from saliency.engine.contexts import NullContext, RuleContext, declared, make_context
from saliency.engine.folds import Steps
from saliency.engine.gradients import Activations, Deltas, at_once, by_site, send_gradients
from saliency.engine.maps import gradient_of
from saliency.engine.paths import Path, Walk, starts_of
from saliency.engine.record import Pass, recording
from saliency.engine.settings import Settings
from saliency.engine.silence import note_idle
from saliency.engine.site import Site
from saliency.engine.state import on_device
from saliency.engine.tail import Tail
from saliency.engine.targets import Targets


class Folding:
    """Fold the steps of every sample's path as they arrive, in order; steps that a fold no longer needs are released.

    There is one for each tensor and target. A sum takes no more memory for many steps than for one.
    """

    def __init__(self, path: Path) -> None:
        self._weights, self._fold = path.weights, path.fold
        self._done: list[Tensor] = []  # the folded paths of the samples so far
        self._sum: Tensor | None = None
        self._needed: Steps | None = None  # the steps of the current sample that are still needed

    def add(self, first: int, steps: Steps) -> None:
        """Add consecutive steps of a sample, the first of which is step number ``first``; their weights are filled in
        here.
        """
        last = first + len(steps.x) == len(self._weights)
        weight = on_device(self._weights[first : first + len(steps.x)], steps.x.device, steps.x.dtype)
        steps = steps._replace(weight=weight.view(-1, *[1] * (steps.x.ndim - 1)))
        steps = steps if self._needed is None else self._needed.joined(steps)
        if self._fold.overlap is not None or last:
            folded = self._fold.combine(steps)
            folded = folded.to(torch.promote_types(folded.dtype, torch.float32))  # many chunks are summed
            self._sum = folded if self._sum is None else self._sum + folded
        self._needed = steps if self._fold.overlap is None else steps.last(self._fold.overlap)
        if last and self._sum is not None:
            self._done.append(self._sum.to(steps.x.dtype))
            self._sum = self._needed = None

    def result(self) -> Tensor:
        """The folded paths of all samples, (N, ...); for a clip's frames, (N * T, ...)."""
        return torch.cat(self._done)


class Walked(NamedTuple):
    """The result of a path: for each target the activations, with the folded gradients as ``.grad``.

    ``missed`` holds the columns (N, 1) or (N, K) of each site's deltas, complete once the activations are consumed.
    """

    activations: Iterable[Activations]
    missed: Sequence[list[Tensor]]

    @property
    def deltas(self) -> list[Tensor]:
        """What is missed at every site: (N,), for K targets (N, K)."""
        joined = (torch.cat(columns, 1) for columns in self.missed)
        return [delta.squeeze(1) if delta.shape[1] == 1 else delta for delta in joined]


def take_gradients(call: Call, targets: Targets, sites: Sequence[Site], settings: Settings) -> Walked:
    """Activations and gradients at the sites: in one pass, or along a path of the input, or along one of each layer."""
    path = settings.path
    if path is None:
        deltas = Deltas()
        wanted = deltas if settings.return_convergence_delta else None
        return Walked(at_once(call, targets, sites, settings, wanted), deltas)
    if not path.at_layer or not any(site.name for site in sites):
        return _along_inputs(call, targets, sites, path, settings)
    each = [
        _along_layer(call, targets, site, path, settings)
        if site.name
        else _along_inputs(call, targets, [site], path, settings)
        for site in sites
    ]
    of_targets = zip(*(walked.activations for walked in each), strict=True)
    joined = [[at_site for (at_site,) in of_sites] for of_sites in of_targets]
    return Walked(joined, [columns for walked in each for columns in walked.missed])


class _Part(NamedTuple):
    """Consecutive steps of one sample: their rows in a chunk, and the number of the first step."""

    rows: slice
    first: int


def _chunks(samples: int, steps: int, size: int | None) -> Iterator[tuple[Tensor, Tensor, list[_Part]]]:
    """Yield samples and steps (B,) of each chunk, with all steps of a sample before those of the next, and the chunk's
    parts.

    >>> [(step.tolist(), parts) for _, step, parts in _chunks(2, 2, 3)][0]
    ([0, 1, 0], [_Part(rows=slice(0, 2, None), first=0), _Part(rows=slice(2, 3, None), first=0)])
    """
    total = samples * steps
    size = size or total
    for start in range(0, total, size):
        end = min(start + size, total)
        flat = torch.arange(start, end, device="cpu")
        parts = []
        for n in range(start // steps, (end - 1) // steps + 1):
            begin = max(n * steps, start)
            parts.append(_Part(slice(begin - start, min((n + 1) * steps, end) - start), begin - n * steps))
        yield flat // steps, flat % steps, parts


def _along_inputs(call: Call, targets: Targets, sites: Sequence[Site], path: Path, settings: Settings) -> Walked:
    """Gradients at all sites along one path of the floating-point inputs."""
    starts = _starts(call, path)
    moving = [at for at, x in enumerate(call.inputs) if x.is_floating_point()]
    if not moving:
        raise ValueError(f"input={call.inputs[0].dtype} does not move along a path; expected a floating-point tensor.")
    folds: list[list[Folding]] = []
    structure: list[list[Tensor]] = []
    walk = _begin(call, path, starts, moving)
    for samples, steps, parts in _chunks(call.samples, len(path.weights), settings.internal_batch_size):
        rows = [dict(zip(moving, tensors, strict=True)) for tensors in walk(samples, steps) if tensors]
        own, calls = targets.rows(samples), [partial(call.replacing, each, samples) for each in rows]
        with _step(calls, own, sites, path, settings) as (recorded, moved):
            structure = recorded.tensors
            tensors = [x for at_site in structure for x in at_site]
            watched = [x for probe in settings.probes for x in probe.data]  # of the single pass
            for k, gradients in enumerate(send_gradients(recorded, own, tensors, watched, settings)):
                if k == len(folds):
                    folds.append([Folding(path) for _ in tensors])
                activations = by_site(sites, structure, [x.detach() for x in tensors], gradients, settings)
                _fold(folds[k], parts, [x for at_site in activations for x in at_site], moved)
    found = [[fold.result() for fold in each] for each in folds]
    scale = _scale(call, starts, sites, path, found[0], settings)
    change = (
        _change(call, targets, path, starts, settings.internal_batch_size)
        if settings.return_convergence_delta
        else None
    )
    return _walked([by_site(sites, structure, [x.clone() for x in scale], each, settings) for each in found], change)


@contextmanager
def _step(
    rows: Sequence[Callable[[], Call]], targets: Targets, sites: Sequence[Site], path: Path, settings: Settings
) -> Iterator[tuple[Pass, list[Tensor] | None]]:
    """Yield a pass at points of a path, and the displacement of the tensors at the sites if the fold needs it.

    ``rows`` return the calls at the points, the starts and the ends. In a context that carries differences, the pass
    compares ends with starts, and the points themselves do not matter.
    """
    point, *ends = rows
    if declared(settings.context_builder, "carries", "gradient") == "differences":
        start, end = ends
        with compare(start(), end(), sites, settings.context_builder, targets.select) as (recorded, first):
            tensors = [x.detach() for at_site in recorded.tensors for x in at_site]
            yield recorded, [x - y for x, y in zip(tensors, first, strict=True)] if path.fold.moves else None
        return
    moved = _differences(ends[1](), ends[0](), sites, settings) if path.fold.moves else None
    with recording(point(), sites, settings.context_builder) as recorded:
        yield recorded, moved


def _fold(folds: list[Folding], parts: list[_Part], activations: list[Tensor], moved: list[Tensor] | None) -> None:
    points = parts[-1].rows.stop
    for i, (fold, x) in enumerate(zip(folds, activations, strict=True)):
        if len(x) % points:
            raise ValueError(
                f"saliency_layer returns {tuple(x.shape)} for {points} points on a path; expected a layer with "
                "one row per image, or one per frame."
            )
        each = (points, len(x) // points, *x.shape[1:])  # a layer that works on frames has a row for each
        for rows, first in parts:
            way = None if moved is None else moved[i].view(each)[rows]
            fold.add(first, Steps(x.view(each)[rows], gradient_of(x).view(each)[rows], x.new_empty(0), way))


def _starts(call: Call, path: Path) -> Call | None:
    """The call at the baselines, if the path begins there."""
    if path.spans != 1:
        return None
    starts = starts_of(path.baselines, call.inputs)
    return call.replacing(dict(enumerate(starts)), torch.arange(call.samples, device="cpu"))


def _begin(call: Call, path: Path, starts: Call | None, moving: list[int]) -> Walk:
    return path.begin(
        [call.inputs[at].detach() for at in moving],
        None if starts is None else [starts.inputs[at] for at in moving],
    )


def _activations(call: Call, sites: Sequence[Site], settings: Settings) -> list[Tensor]:
    """The tensors at the sites; those at the input need no pass."""
    if not any(site.name for site in sites):
        return [x.detach() for _ in sites for x in call.inputs if x.is_floating_point()]
    with recording(call, sites, settings.context_builder, grad=False) as recorded:
        return [x.detach() for at_site in recorded.tensors for x in at_site]


def _differences(call: Call, other: Call, sites: Sequence[Site], settings: Settings) -> list[Tensor]:
    pairs = zip(_activations(call, sites, settings), _activations(other, sites, settings), strict=True)
    return [x - y for x, y in pairs]


def _scale(
    call: Call, starts: Call | None, sites: Sequence[Site], path: Path, folded: list[Tensor], settings: Settings
) -> list[Tensor]:
    """The factor that turns folded gradients into attributions."""
    if path.fold.attribution or path.times == "nothing":
        return [torch.ones_like(x) for x in folded]
    if path.times == "displacement" and starts is not None:
        return _differences(call, starts, sites, settings)
    return _activations(call, sites, settings)


def _change(call: Call, targets: Targets, path: Path, starts: Call | None, size: int | None) -> Tensor:
    """The change of the score from the start to the end of each sample's path, (N, K): the mean over its spans."""
    moving = [at for at, x in enumerate(call.inputs) if x.is_floating_point()]
    walk, spans, changes = _begin(call, path, starts, moving), path.spans or 1, []
    for samples, steps, _ in _chunks(call.samples, spans, size):
        rows = walk(samples, steps)
        start, end = (
            targets.rows(samples).scores(call.replacing(dict(zip(moving, x, strict=True)), samples).run())
            for x in (rows.starts, rows.ends)
        )
        changes.append((end - start).detach())
    return torch.cat(changes).view(call.samples, spans, -1).mean(1)


def _along_layer(call: Call, targets: Targets, site: Site, path: Path, settings: Settings) -> Walked:
    """Gradients along a path of one layer's activation: the network before it runs once per sample."""
    starts = _starts(call, path)
    first = None if starts is None else _activations(starts, [site], settings)[0]
    folds: list[Folding] = []
    scale, changes = [], []
    for n in range(call.samples):
        row = torch.tensor([n], device="cpu")
        own = targets.rows(row)
        tail = Tail(site, call.rows(row), torch.is_grad_enabled(), settings.context_builder)
        start = torch.zeros_like(tail.activation) if first is None else first[n : n + 1]
        walk = path.begin([tail.activation], [start])
        for samples, steps, parts in _chunks(1, len(path.weights), settings.internal_batch_size):
            x = walk(samples, steps).points[0].requires_grad_()
            with torch.enable_grad(), make_context(settings.context_builder) as context:
                before = getattr(context, "ran", 0)
                recorded = Pass(tail.run(x), [[x]], context if isinstance(context, RuleContext) else NullContext())
                if isinstance(context, RuleContext) and context.ran == before:
                    note_idle(call.notices, context, [site])
                for k, gradients in enumerate(send_gradients(recorded, own.rows(samples), [x], [], settings)):
                    if k == len(folds):
                        folds.append(Folding(path))
                    _fold([folds[k]], parts, by_site([site], [[x]], [x.detach()], gradients, settings)[0], None)
        scale.append(tail.activation - start if path.times == "displacement" else tail.activation)
        if settings.return_convergence_delta:
            end, begin = own.rows(torch.tensor([0, 0], device="cpu")).scores(tail(torch.cat([tail.activation, start])))
            changes.append((end - begin).detach()[None])
    times = torch.cat(scale)
    times = torch.ones_like(times) if path.fold.attribution or path.times == "nothing" else times
    found = [by_site([site], [[times]], [times.clone()], [fold.result()], settings) for fold in folds]
    return _walked(found, torch.cat(changes) if changes else None)


def _walked(found: Sequence[Activations], change: Tensor | None) -> Walked:
    """Add the deltas (N, K): by how much the attributions at each site differ from the change of the score."""
    missed = []
    for of_targets in zip(*found, strict=True) if change is not None else ():
        sums = [torch.stack([(x * gradient_of(x)).flatten(1).sum(1) for x in tensors]).sum(0) for tensors in of_targets]
        missed.append([torch.stack(sums, 1) - (0 if change is None else change.to(sums[0]))])
    return Walked(found, missed)
