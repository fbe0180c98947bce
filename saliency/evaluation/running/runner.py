"""The runner: every case of a data set, explained by every method, measured by every metric, on disk at once."""

import logging
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path
from typing import IO

import torch
from torch.nn import Module

from saliency.engine.checks import check_flag, check_type, is_int, shown
from saliency.engine.state import model_device, model_dtype
from saliency.evaluation.cases import Case, Dataset, Images, describe, left_out, load_cases
from saliency.evaluation.explainers import Given, Methods, drawing_from, named_methods
from saliency.evaluation.printing import Figure, one_line, progress_bar
from saliency.evaluation.report import write_report
from saliency.evaluation.report.gallery import write_gallery
from saliency.evaluation.report.terminal import Outcome, summarise
from saliency.evaluation.running.compute import Evidence, explain_cases, load_batches, score_cases
from saliency.evaluation.running.configuration import SESSION, describe_network, fingerprint_of, versions
from saliency.evaluation.running.plan import Job, Metrics, Run, check_setting, make_jobs, plan_batches
from saliency.evaluation.running.ranks import Ranks, UnwritableError, join_ranks, owning
from saliency.evaluation.running.store import Result, append_results, read_results, write_configurations, write_file
from saliency.images import check_path
from saliency.networks.preprocessing import Preprocessing

Done = Collection[tuple[tuple[str, int], str]]  # the key of a case, and the fingerprint of a job
BATCH_SIZE, GALLERY = 8, 24  # images
GROUPS = 4  # sizes of images, and with them maps of a batch, that are kept for the next metric


def run(
    dataset: Dataset,
    model: Module,
    preprocessing: Preprocessing,
    methods: Methods | Given | list[Given],
    metrics: Metrics,
    out: str | Path,
    *,
    network: Mapping[str, object] | None = None,
    outputs: Sequence[Sequence[int]] | None = None,
    limit: int | None = None,
    batch_size: int = BATCH_SIZE,
    gallery: int = GALLERY,
    retry_errors: bool = False,
) -> Outcome:
    """Score every case by every method and metric; results of an earlier run in ``out`` are reused.

    ``methods``: ``f(model, input, target)``, a list of functions, or a dict by name, each alone, as ``(f, options)`` or
    as an :class:`Explainer`, with settings of its own. ``metrics``: names, or a dict of the options of each.
    ``network`` is stored with the results, besides digests of its tensors and structure: a ``version`` there
    records changes of its code. ``outputs``: for each class of the data set its outputs of the network, () to leave it
    out. Failed cases have results with their error; ``retry_errors`` tries those of earlier runs again. The ranks of
    ``torchrun`` share the work: the results do not depend on their number, if each has as many threads. A completed
    run writes the report of everything in ``out``; an interrupted one ends with the results so far.
    ``str(outcome)`` is a summary. Raises ``ValueError`` for wrong arguments and a folder in use, ``OSError`` where
    results cannot be written, as on a full disk: those already written stay intact.
    """
    check_setting(dataset, model, preprocessing, outputs)
    check_path("out", out)
    check_type("network", network, (Mapping, type(None)), "facts about the network, by name")
    check_flag("retry_errors", retry_errors)
    if not is_int(gallery) or gallery < 0:
        raise ValueError(f"gallery={shown(gallery)} is not a number of images; expected an int >= 0.")
    outputs = [(index,) for index in range(len(dataset.classes))] if outputs is None else outputs
    explainers = named_methods(methods)
    for name, explainer in explainers.items():
        explainer.check(name, model)
    setting = {
        "dataset": describe(dataset),
        "network": {**(network or {}), **describe_network(model, preprocessing)},
        "outputs": outputs,
        "device": model_device(model).type,
        "dtype": model_dtype(model, torch.zeros(0, device="cpu")),
        "versions": versions(),
    }
    ranks = join_ranks()
    jobs = make_jobs(explainers, metrics, setting, ranks.share("session", f"{SESSION}-{os.getpid()}"))
    without = {label for label, own in enumerate(outputs) if not own}
    batches = plan_batches(dataset.annotations, preprocessing, batch_size, limit, without)
    if not batches:
        raise ValueError(f"dataset={dataset.name!r} holds no case with an output; expected one with some.")
    planned = Run(dataset, model, preprocessing, outputs, explainers, jobs, batches, Path(out), gallery)
    return carry_out(planned, ranks, retry_errors)


def carry_out(run: Run, ranks: Ranks, retry_errors: bool) -> Outcome:
    """Carry out the plan in its folder, together with the other ranks."""
    unversioned = ", ".join(sorted({name for job in run.jobs for name in job.unversioned}))
    if unversioned and ranks.rank == 0:
        said = "no version of %s: a later process does not reuse these results; expected version= of the %s"
        logging.getLogger(__name__).warning(said, unversioned, "Explainer (--method-version) or Metric")
    batches = [[case.key for case in chain.from_iterable(batch)] for batch in run.batches]
    plan = fingerprint_of({"jobs": [job.fingerprint for job in run.jobs], "batches": batches})
    interrupted, problems, report = False, list[str](), None
    try:
        with owning(run.out, ranks, plan) as file:
            try:
                execute(run, ranks, file, retry_errors, problems)
                report = try_report(run.out) if ranks.rank == 0 else None
            except KeyboardInterrupt:
                interrupted = True
            lines = summarise(read_results(run.out, []), run.jobs, run.cases) if ranks.rank == 0 else []
    except UnwritableError:  # of a finished run the table is all that is left to do
        lines = summarise(read_results(run.out, problems), run.jobs, run.cases)
        if any(line.missing or (retry_errors and line.failures) for line in lines):
            raise
    fingerprints = frozenset(job.fingerprint for job in run.jobs)
    return Outcome(lines, tuple(problems), interrupted, ranks.rank, fingerprints, run.out, report)


def try_report(out: Path) -> Path | None:
    """Write the report, and return its page's path. A failure is only a warning: the results stand without it."""
    try:
        return write_report(out)[-1]
    except (OSError, ValueError) as error:
        logging.getLogger(__name__).warning("the report is not written: %s", one_line(error))
        return None


def execute(run: Run, ranks: Ranks, file: IO[bytes], retry_errors: bool, problems: list[str]) -> None:
    """Compute what has no result yet, together with the other ranks; rank 0 returns when all are done.

    ``problems`` receives every line of the files that is not a valid result.
    """
    figure = Figure(f"{run.jobs[0].name} {run.jobs[0].metric}")
    done = read_done(run, retry_errors, problems, figure)
    if ranks.rank == 0:
        write_configurations(run.out, {job.fingerprint: job.configuration for job in run.jobs})
        if lines := left_out(run.dataset, run.outputs):
            write_file(run.out / "left-out.txt", "".join(f"{line}\n" for line in lines).encode())
    ranks.add("ready", 1)
    for _ in ranks.wait("ready"):  # nobody writes before all have read
        pass
    pending = [batch for batch in run.batches if _missing(run, chain.from_iterable(batch), done)]
    total, left = (sum(len(cases) for batch in batches for cases in batch) for batches in (run.batches, pending))
    load = partial(load_cases, run.dataset, run.preprocessing)
    with progress_bar(total, total - left) if ranks.rank == 0 else nullcontext(lambda *state: None) as show:
        with closing(load_batches(ranks.divide(pending), load)) as loaded:
            for images in loaded:
                for results in compute_batch(run, images, done):
                    append_results(file, results)
                    figure.add(result.score for result in results if result.fingerprint == run.jobs[0].fingerprint)
                os.fsync(file.fileno())
                show(total - left + ranks.add("cases", sum(map(len, images))), str(figure))
        ranks.add("finished", 1)
        for _ in ranks.wait("finished") if ranks.rank == 0 else ():
            show(total - left + ranks.add("cases", 0), str(figure))


def read_done(run: Run, retry_errors: bool, problems: list[str], figure: Figure) -> Done:
    """The cases and jobs that have a result on disk; with ``retry_errors``, errors do not count."""
    done, wanted = set(), {job.fingerprint for job in run.jobs}
    for result in read_results(run.out, problems):
        failed = retry_errors and result.score is None
        if result.fingerprint in wanted and result.case in run.cases and not failed:
            done.add((result.case, result.fingerprint))
            figure.add([result.score] if result.fingerprint == run.jobs[0].fingerprint else [])
    return done


def _missing(run: Run, cases: Iterable[Case], done: Done) -> list[Job]:
    """The jobs that lack a result for at least one of the cases."""
    keys = [case.key for case in cases]
    return [job for job in run.jobs if not job.of and any((key, job.fingerprint) not in done for key in keys)]


def compute_batch(run: Run, images: Images, done: Done) -> Iterator[list[Result]]:
    """Yield the results that a loaded batch lacks, job by job. It is explained whole, as in an uninterrupted run."""
    cases = [*chain.from_iterable(images)]
    pending = _missing(run, cases, done)
    with drawing_from(cases[0].index, run.device):
        explain_cases(run, images, Counter(name for job in pending for name in job.methods))
    show_images(run, images)
    evidence = lru_cache(GROUPS)(partial(Evidence, run))
    for job in pending:
        with drawing_from(cases[0].index, run.device):
            results = score_cases(job, cases, evidence)
        yield [result for result in results if (result.case, job.fingerprint) not in done]


def show_images(run: Run, images: Images) -> None:
    """Write the pictures of those images of a batch that belong to the gallery."""
    for cases in images:
        if cases[0].index < run.gallery and not cases[0].error_of():
            named = [(case, name) for case in cases for name in case.maps]
            maps = {(case.label, name): Evidence(run, name, (case,)).saliency[0, 0].cpu() for case, name in named}
            write_gallery(run.out, cases[0].index, cases[0].annotation, cases[0].image, maps)
