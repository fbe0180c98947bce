"""Doing what a run has planned: batch after batch, its rows on disk before the next."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from functools import lru_cache, partial
from pathlib import Path
from typing import IO, NamedTuple

import torch
from torch import Tensor

from saliency.evaluation.cases import Dataset, is_difficult
from saliency.evaluation.networks.models import Recipe
from saliency.evaluation.running.configuration import write_configuration, write_file
from saliency.evaluation.running.explaining import attempt, finish
from saliency.evaluation.running.jobs import Job
from saliency.evaluation.running.loading import Sample, load_batches, load_sample
from saliency.evaluation.running.plan import Batch, Case
from saliency.evaluation.running.progress import Figure, progress_bar
from saliency.evaluation.running.ranks import Ranks
from saliency.evaluation.running.rows import Row, append_rows, scan_rows
from saliency.evaluation.running.scoring import Bench, Explained, explain_samples, make_evidence, score_task
from saliency.evaluation.running.snapshots import write_gallery

Done = dict[str, set[Case]]  # by fingerprint

GROUPS = 4  # sizes of images, and with them maps of a batch, that are kept for the next metric


class Run(NamedTuple):
    """What is computed, from what, and where the results go; the first ``gallery`` images with pictures."""

    dataset: Dataset
    recipe: Recipe
    bench: Bench
    jobs: list[Job]
    batches: list[Batch]
    out: Path
    gallery: int

    @property
    def cases(self) -> dict[tuple[str, int], Case]:
        """The cases by the name of their image and their class."""
        annotations = self.dataset.annotations
        return {(annotations[case.image].name, case.label): case for batch in self.batches for case in batch.cases}


def execute(run: Run, ranks: Ranks, file: IO[bytes], retry_errors: bool, problems: list[str]) -> None:
    """Compute what has no row yet, together with the other ranks; rank 0 returns when all are done.

    ``problems`` are given what is no row in the files.
    """
    figure = Figure(f"{run.jobs[0].task.name} {run.jobs[0].task.metric}")
    done = read_done(run, retry_errors, problems, figure)
    if ranks.rank == 0:
        for job in run.jobs:
            write_configuration(run.out, job.fingerprint, job.configuration)
        if problems_of_data := left_out(run.dataset, run.bench.outputs):
            write_file(run.out / "left-out.txt", "".join(f"{line}\n" for line in problems_of_data).encode())
    ranks.add("ready", 1)
    for _ in ranks.wait("ready"):  # nobody writes before all have read
        pass
    pending = [batch for batch in run.batches if any(is_missing(job, batch, done) for job in run.jobs)]
    total, left = (sum(len(batch.cases) for batch in batches) for batches in (run.batches, pending))
    load = partial(load_sample, run.dataset, run.recipe)
    with progress_bar(total, total - left) if ranks.rank == 0 else nullcontext(_show_nothing) as show:
        with closing(load_batches(ranks.divide(pending), load)) as loaded:
            for batch, futures in loaded:
                for rows in compute_rows(run, batch, [attempt(future.result) for future in futures], done):
                    append_rows(file, rows)
                    figure.add(row.score for row in rows if row.fingerprint == run.jobs[0].fingerprint)
                os.fsync(file.fileno())
                show(total - left + ranks.add("cases", len(batch.cases)), str(figure))
        ranks.add("finished", 1)
        for _ in ranks.wait("finished") if ranks.rank == 0 else ():
            show(total - left + ranks.add("cases", 0), str(figure))


def left_out(dataset: Dataset, outputs: Sequence[Sequence[int]]) -> list[str]:
    """What of the data set is not played, and why: its problems, and classes that the network has no output for."""
    classes = zip(dataset.classes, outputs, strict=True)
    return [*dataset.problems, *(f"class {name!r} has no output" for name, own in classes if not own)]


def _show_nothing(done: int, figure: str) -> None:
    pass


def read_done(run: Run, retry_errors: bool, problems: list[str], figure: Figure) -> Done:
    """The cases of each job that have a row on disk; with ``retry_errors`` one that is no error."""
    done: Done = {job.fingerprint: set() for job in run.jobs}
    cases = run.cases
    for row in scan_rows(run.out, problems):
        case = cases.get((row.image, row.target))
        if case is None or row.fingerprint not in done or (retry_errors and row.score is None):
            continue
        done[row.fingerprint].add(case)
        if row.fingerprint == run.jobs[0].fingerprint:
            figure.add([row.score])
    return done


def is_missing(job: Job, batch: Batch, done: Done) -> bool:
    """Is a case of the batch without a row of the job?"""
    return not done[job.fingerprint].issuperset(batch.cases)


def compute_rows(run: Run, batch: Batch, samples: Sequence[Sample | str], done: Done) -> Iterator[list[Row]]:
    """Yield the rows that a batch lacks, job by job. It is computed whole, as it would have been in one go."""
    pending = [job for job in run.jobs if is_missing(job, batch, done)]
    uses = Counter(name for job in pending for name in job.task.methods)
    with drawing_from(batch.images[0], run.bench.device):
        explained = explain_samples(run.bench, samples, batch.labels, uses)
    show_images(run, batch, explained)
    difficult = [flag for at in range(len(samples)) for flag in _difficult(run.dataset, batch, at, samples[at])]
    evidence = lru_cache(GROUPS)(partial(make_evidence, run.bench, explained))
    for job in pending:
        with drawing_from(batch.images[0], run.bench.device):
            scores = score_task(run.bench, explained, job.task, evidence)
        found = zip(batch.cases, scores, difficult, strict=True)
        yield [
            Row(
                image=run.dataset.annotations[case.image].name,
                target=case.label,
                method=job.task.name,
                metric=job.task.metric,
                fingerprint=job.fingerprint,
                difficult=flag,
                **score._asdict(),
            )
            for case, score, flag in found
            if case not in done[job.fingerprint]
        ]


def _difficult(dataset: Dataset, batch: Batch, at: int, sample: Sample | str) -> list[bool]:
    if isinstance(sample, Sample):
        return sample.difficult
    annotation = dataset.annotations[batch.images[at]]
    return [attempt(partial(is_difficult, annotation, label)) is True for label in batch.labels[at]]


@contextmanager
def drawing_from(seed: int, device: torch.device) -> Iterator[None]:
    """Draw global random numbers from a seed, for methods and measures without one of their own; then as before."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def show_images(run: Run, batch: Batch, explained: Explained) -> None:
    """Write the pictures of those images of a batch that belong to the gallery."""
    for at, image in enumerate(batch.images):
        sample = explained.samples[at]
        if image >= run.gallery or not isinstance(sample, Sample):
            continue
        maps: dict[tuple[int, str], Tensor] = {}
        for case, (its, column) in enumerate(explained.places):
            for method, found in explained.maps.items():
                map = found[case]
                if its == at and isinstance(map, Tensor):
                    size = (sample.image.shape[1], sample.image.shape[2])
                    finished = finish(run.bench.explainers[method], map[None, None], size)
                    maps[batch.labels[at][column], method] = finished[0, 0].cpu()
        write_gallery(run.out, image, run.dataset.annotations[image], sample.image, maps)
