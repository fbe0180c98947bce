"""The table of a run, from the rows on disk."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from saliency.evaluation.metrics import METRICS
from saliency.evaluation.running.plan import Case
from saliency.evaluation.running.rows import Row
from saliency.evaluation.running.scoring import Task


class Line(NamedTuple):
    """A method and a metric: means over cases and over classes (of the difficult cases too), and what they are of.

    A mean is None where there is no case. ``missing`` cases have no row yet. ``error`` is that of the first failure.
    ``constant`` cases have a map without a maximum.
    """

    task: Task
    mean: float | None
    class_mean: float | None
    difficult: float | None
    cases: int
    failures: int
    missing: int
    error: str | None = None
    constant: int = 0


def summarise(rows: Iterable[Row], tasks: Mapping[str, Task], cases: Mapping[tuple[str, int], Case]) -> list[Line]:
    """A line for each task, known by its fingerprint, over the rows of the given cases, by image and target.

    There is one row for each case, as of :func:`read_rows`.
    """
    own: dict[str, dict[tuple[str, int], Row]] = {fingerprint: {} for fingerprint in tasks}
    for row in rows:
        found, case = own.get(row.fingerprint), (row.image, row.target)
        if found is not None and case in cases:
            found[case] = row
    return [_line(task, own[fingerprint], len(cases)) for fingerprint, task in tasks.items()]


def _line(task: Task, found: Mapping[tuple[str, int], Row], planned: int) -> Line:
    scores = [(row.target, row.score, row.difficult) for row in found.values() if row.score is not None]
    return Line(
        task,
        _mean([score for _, score, _ in scores]),
        _class_mean((label, score) for label, score, _ in scores),
        _class_mean((label, score) for label, score, difficult in scores if difficult),
        len(scores),
        len(found) - len(scores),
        planned - len(found),
        next((f"{row.image}: {row.error}" for row in found.values() if row.score is None), None),
        sum(row.constant for row in found.values()),
    )


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

    >>> print(markdown([Line(Task(("rise",), "pointing_game"), 0.5, 0.25, None, 4, 1, 0)]))
    | metric | method | mean | mean over classes | difficult | cases | failed |
    | --- | --- | ---: | ---: | ---: | ---: | ---: |
    | pointing_game | rise | 0.5000 | 0.2500 | – | 4 | 1 |
    """
    table = [
        "| metric | method | mean | mean over classes | difficult | cases | failed |",
        "| --- | --- |" + 5 * " ---: |",
    ]
    by_metric: dict[str, list[Line]] = defaultdict(list)
    for line in lines:
        by_metric[line.task.metric].append(line)
    for metric, entries in by_metric.items():
        sign = -1 if metric not in METRICS or METRICS[metric].higher_is_better else 1
        for line in sorted(entries, key=lambda entry: (entry.mean is None, sign * (entry.mean or 0))):
            means = [_shown(value) for value in (line.mean, line.class_mean, line.difficult)]
            cells = [metric, line.task.name.replace("|", "\\|"), *means, str(line.cases), str(line.failures)]
            table.append(f"| {' | '.join(cells)} |")
    return "\n".join(table)


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
