"""The runner: every case of a data set, explained by every method, measured by every metric, on disk at once."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn import Module

from saliency.engine.state import model_device, model_dtype
from saliency.evaluation.cases import Dataset, describe
from saliency.evaluation.metrics.perturbed import class_softmax
from saliency.evaluation.networks.models import Recipe
from saliency.evaluation.running.configuration import SESSION, describe_network, fingerprint_of, versions
from saliency.evaluation.running.execution import Run, execute
from saliency.evaluation.running.explaining import check_layers, make_explainer
from saliency.evaluation.running.folder import UnwritableError, owning
from saliency.evaluation.running.jobs import Job, Methods, make_jobs
from saliency.evaluation.running.plan import plan_batches
from saliency.evaluation.running.ranks import Ranks, join_ranks
from saliency.evaluation.running.rows import read_rows
from saliency.evaluation.running.scoring import Bench
from saliency.evaluation.running.summary import Line, markdown, summarise


class Outcome(NamedTuple):
    """What the rows on disk come to, on rank 0. ``problems`` are lines of their files that hold no row."""

    lines: list[Line]
    problems: tuple[str, ...]
    interrupted: bool
    rank: int
    fingerprints: frozenset[str]  # of the rows that the lines are of

    @property
    def failed(self) -> int:
        """The number of results that are errors."""
        return sum(line.failures for line in self.lines)

    @property
    def table(self) -> str:
        """The results as a Markdown table."""
        return markdown(self.lines)


def run(
    dataset: Dataset,
    model: Module,
    recipe: Recipe,
    methods: Methods,
    metrics: Mapping[str, Mapping[str, Any]],
    out: str | Path,
    *,
    network: Mapping[str, Any] | None = None,
    outputs: Sequence[Sequence[int]] | None = None,
    limit: int | None = None,
    batch_size: int = 8,
    gallery: int = 24,
    retry_errors: bool = False,
) -> Outcome:
    """Score every case by every method and metric; what is on disk in ``out`` from an earlier run is not done again.

    ``methods`` are functions with their options, by name, or an :class:`Entrant` with a version of what the function
    does; ``metrics`` the options of each. ``network`` is written down with the results, besides digests of its tensors
    and structure: a ``version`` there tells changes of its code. ``outputs`` are those of the network that each class
    of the data set means, () for a class that is left out. Cases that fail have rows with their error;
    ``retry_errors`` tries those of earlier runs again. Started by ``torchrun``, the ranks share the work; results are
    the same for any number of them, with as many threads each. An interrupt ends the run with what there is.
    Raises ``ValueError`` for wrong arguments and a folder in use, ``OSError`` where rows cannot be written, as on a
    full disk: those that were stay whole.
    """
    outputs = [(index,) for index in range(len(dataset.classes))] if outputs is None else outputs
    explainers = {name: make_explainer(name, *given[:2]) for name, given in methods.items()}
    for explainer in explainers.values():
        check_layers(model, explainer)
    activation = torch.sigmoid if recipe.multi_label else class_softmax
    bench = Bench(model, activation, outputs, explainers, metrics, model_device(model))
    setting = {
        "dataset": describe(dataset),
        "network": {**(network or {}), **describe_network(model, recipe)},
        "outputs": outputs,
        "device": bench.device.type,
        "dtype": model_dtype(model, torch.zeros(0)),
        "versions": versions(),
    }
    ranks = join_ranks()
    jobs = make_jobs(methods, metrics, setting, ranks.share("session", SESSION))
    if ranks.rank == 0:
        tell_of_unversioned(jobs)
    without = {label for label, own in enumerate(outputs) if not own}
    batches = plan_batches(dataset.annotations, recipe, batch_size, limit, without)
    if not batches:
        raise ValueError(f"dataset={dataset.name!r} holds no case with an output; one with some is accepted.")
    return carry_out(Run(dataset, recipe, bench, jobs, batches, Path(out), gallery), ranks, retry_errors)


def tell_of_unversioned(jobs: Sequence[Job]) -> None:
    """Say on the terminal, in one line, which results no later process can know."""
    if names := sorted({name for job in jobs for name in job.unversioned}):
        logging.getLogger(__name__).warning(
            "no version of %s: a later process does not reuse these results; version= of the method is accepted",
            ", ".join(names),
        )


def carry_out(run: Run, ranks: Ranks, retry_errors: bool) -> Outcome:
    """Do what is planned, in its folder, with the other ranks."""
    tasks = {job.fingerprint: job.task for job in run.jobs}
    plan = fingerprint_of({"jobs": list(tasks), "batches": run.batches})
    interrupted, problems = False, list[str]()
    try:
        with owning(run.out, ranks, plan) as file:
            try:
                execute(run, ranks, file, retry_errors, problems)
            except KeyboardInterrupt:
                interrupted = True
            lines = summarise(read_rows(run.out, []), tasks, run.cases) if ranks.rank == 0 else []
    except UnwritableError:  # of a finished run the table is all that is left to do
        lines = summarise(read_rows(run.out, problems), tasks, run.cases)
        if any(line.missing or (retry_errors and line.failures) for line in lines):
            raise
    return Outcome(lines, tuple(problems), interrupted, ranks.rank, frozenset(tasks))
