"""The table that ends a run, from the results on disk."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from saliency.evaluation.metrics import METRICS
from saliency.evaluation.printing import printable
from saliency.evaluation.report.markdown import table
from saliency.evaluation.running.plan import Job
from saliency.evaluation.running.store import Result


class Line(NamedTuple):
    """A method and a metric: means over cases and over classes (of the difficult cases too), with their numbers.

    A mean is None where there is no case. ``missing`` cases have no result yet. ``error`` is that of the first failure.
    ``constant`` cases have a map without a maximum. Of a metric of the whole data set ``mean`` is the result; what
    failed, the metric says that it looks at.
    """

    method: str
    metric: str
    mean: float | None
    class_mean: float | None
    difficult: float | None
    cases: int
    failures: int
    missing: int
    error: str | None = None
    constant: int = 0


class Outcome(NamedTuple):
    """A summary of the results on disk, on rank 0. ``problems`` are lines of their files that are not valid results.

    ``str(outcome)`` is printed at the end of a run: the table, failures and reasons, the paths of results and report.
    """

    lines: list[Line]
    problems: tuple[str, ...]
    interrupted: bool
    rank: int
    fingerprints: frozenset[str]  # of the results that the lines are of
    out: Path  # the folder of the results
    report: Path | None = None  # the page, where one was written

    @property
    def failed(self) -> int:
        """The number of results that are errors."""
        return sum(line.failures for line in self.lines)

    @property
    def table(self) -> str:
        """The results as a Markdown table."""
        return markdown(self.lines)

    @property
    def remarks(self) -> list[str]:
        """Notes on the table: constant maps, missing results, and failures with their first error."""
        constant = {line.method: line.constant for line in self.lines if line.constant}
        missing = sum(line.missing for line in self.lines)
        found = [f"constant maps: {', '.join(f'{count} of {name}' for name, count in constant.items())}"] * bool(
            constant
        )
        found += [f"{missing} results are missing; the same call resumes the run"] * bool(missing)
        errors: dict[str, list[Line]] = defaultdict(list)
        for line in self.lines:
            if line.error:
                errors[line.error].append(line)
        for error, lines in errors.items():
            more = f" and {len(lines) - 1} more" if len(lines) > 1 else ""
            failed = sum(line.failures for line in lines)
            found.append(f"{lines[0].method}, {lines[0].metric}{more}: {failed} failed; the first: {error}")
        return found

    @property
    def places(self) -> list[str]:
        """Where the results are, and the report."""
        return [f"results: {self.out}", *([f"report: {self.report}"] if self.report else [])]

    def __str__(self) -> str:
        return printable("\n".join([self.table, "", *self.remarks, *self.places]))


def summarise(results: Iterable[Result], jobs: Sequence[Job], cases: Collection[tuple[str, int]]) -> list[Line]:
    """A line for each job, over the results of the given cases, one for each, as of :func:`read_results`."""
    own: dict[str, list[Result]] = {job.fingerprint: [] for job in jobs if not job.of}
    for result in results:
        if result.fingerprint in own and result.case in cases:
            own[result.fingerprint].append(result)
    return [_line(job, own[job.of or job.fingerprint], len(cases)) for job in jobs]


def _line(job: Job, found: Sequence[Result], planned: int) -> Line:
    if job.of:
        curves, metric = [result.curve for result in found if result.curve is not None], METRICS[job.metric]
        options = {**metric.options, **job.options}
        result = float(metric.function(torch.tensor(curves, device="cpu"), **options)) if curves else None
        return Line(job.name, job.metric, result, None, None, len(curves), 0, 0)
    scores = [(result.target, result.score, result.difficult) for result in found if result.score is not None]
    means = (
        _mean([score for _, score, _ in scores]),
        _class_mean((label, score) for label, score, _ in scores),
        _class_mean((label, score) for label, score, difficult in scores if difficult),
    )
    counts = len(scores), len(found) - len(scores), planned - len(found)
    error = next((f"{result.image}: {result.error}" for result in found if result.score is None), None)
    return Line(job.name, job.metric, *means, *counts, error, sum(result.constant for result in found))


def _mean(values: Collection[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _class_mean(scores: Iterable[tuple[int, float]]) -> float | None:
    """The mean over classes of their means; one without cases has none."""
    classes: dict[int, list[float]] = defaultdict(list)
    for label, score in scores:
        classes[label].append(score)
    return _mean([sum(values) / len(values) for values in classes.values()])


def markdown(lines: Iterable[Line]) -> str:
    """The lines as a Markdown table: metric by metric, the best method first.

    >>> print(markdown([Line("rise", "pointing_game", 0.5, 0.25, None, 4, 1, 0)]))
    | metric | method | mean | mean over classes | difficult | cases | failed |
    | --- | --- | ---: | ---: | ---: | ---: | ---: |
    | pointing_game | rise | 0.5000 | 0.2500 | – | 4 | 1 |
    """
    rows: list[list[str]] = []
    by_metric: dict[str, list[Line]] = defaultdict(list)
    for line in lines:
        by_metric[line.metric].append(line)
    for metric, entries in by_metric.items():
        sign = -1 if metric not in METRICS or METRICS[metric].higher_is_better else 1
        for line in sorted(entries, key=lambda entry: (entry.mean is None, sign * (entry.mean or 0))):
            means = [_shown(value) for value in (line.mean, line.class_mean, line.difficult)]
            rows.append([metric, line.method.replace("|", "\\|"), *means, str(line.cases), str(line.failures)])
    header = ["metric", "method", "mean", "mean over classes", "difficult", "cases", "failed"]
    return table(header, rows, left=2)


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
