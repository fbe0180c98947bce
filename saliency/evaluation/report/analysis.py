"""The results of a run: means, comparisons, agreement, time and failures, for any form of report."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from saliency.engine.checks import shown
from saliency.evaluation.metrics import METRICS
from saliency.evaluation.report.series import BOX_ACCURACY, DELTA, Series, failed, is_better_high, read_series
from saliency.evaluation.report.statistics import (
    Estimate,
    Estimates,
    estimate_box_accuracy,
    estimate_means,
    holm,
    paired_p_values,
)
from saliency.evaluation.report.trials import differences, is_same_experiment
from saliency.evaluation.running.store import Result
from saliency.networks.names import unknown

SIGNIFICANT = 0.05


class Summary(NamedTuple):
    """The summary of a series. ``share`` is of the seconds of the whole run, ``mark`` is 'best', 'tied' or ''.

    ``box_accuracy`` is MaxBoxAcc with its place on the curve, for curves of box IoU; ``constant`` the number of maps
    that are constant.
    """

    series: Series
    means: Estimates
    failures: int
    seconds: float
    share: float
    curve: tuple[float, ...]
    box_accuracy: tuple[Estimate, int] | None
    mark: str = ""
    constant: int = 0


class Pair(NamedTuple):
    """Two lines on the cases that both have: mean of first - second, its p-value, and that adjusted by Holm."""

    column: str
    first: str
    second: str
    cases: int
    difference: float
    p_value: float
    adjusted: float


class Agreement(NamedTuple):
    """A symmetric matrix of mean rank correlations between the maps of methods; NaN where there is none."""

    title: str
    methods: list[str]
    values: list[list[float]]
    cases: int


class Earlier(NamedTuple):
    """A trial that a later one has superseded: its mean over cases, and its differences."""

    line: str
    column: str
    date: str
    mean: Estimate
    differences: str


class Failure(NamedTuple):
    """One message of a series, with its cases: image (class)."""

    line: str
    column: str
    message: str
    cases: list[str]


class Analysis(NamedTuple):
    """All that a report shows. ``problems`` are files of the run that could not be used, each in a sentence."""

    series: list[Series]
    summaries: list[Summary]
    pairs: list[Pair]
    agreements: list[Agreement]
    failures: list[Failure]
    problems: list[str]
    earlier: list[Earlier]

    @property
    def dates(self) -> dict[str, str]:
        """When each method of several trials was last run, by its line."""
        trials = {item.line: item.trial for item in self.series if not item.is_pair}
        return {line: trial.shown_date for line, trial in trials.items() if trial and trial.total > 1}

    @property
    def columns(self) -> list[str]:
        """The metrics of the tables, in order."""
        return list(dict.fromkeys(summary.series.column for summary in self.summaries))

    @property
    def lines(self) -> list[str]:
        """The methods of the tables, the best of the first metric first, then those without it by name."""
        return list(dict.fromkeys(summary.series.line for column in self.columns for summary in self.ranked(column)))

    def ranked(self, column: str) -> list[Summary]:
        """The summaries of a metric, the best first; by name where METRICS does not say what is best."""
        found = [summary for summary in self.summaries if summary.series.column == column]
        sign = {True: -1.0, False: 1.0, None: 0.0}[is_better_high(found[0].series.metric)]
        return sorted(found, key=lambda item: (not item.means.cases.cases, sign * _number(item.means.cases.value)))

    def box_title(self, column: str) -> str:
        """The name of a column's MaxBoxAcc."""
        deltas = {str(item.series.delta): None for item in self.summaries if item.series.column == column}
        usual = list(deltas) == [str(DELTA)]
        return f"MaxBoxAcc of {column}" + ("" if usual else f", IoU ≥ {' or '.join(deltas)}")

    def is_share(self, column: str) -> bool:
        """Whether every score of the metric is a hit or a miss, or its chance, so that its mean is a percentage."""
        own = [item.series for item in self.summaries if item.series.column == column]
        return own[0].hits or all(row.score in (0, 1) for series in own for row in series.finished)


def analyse(folder: str | Path, methods: Sequence[str] | None = None) -> Analysis:
    """Read the folder of a run and compute what a report shows; ``ValueError`` where it holds no rows.

    ``methods`` are the names of those to show, or of single trials. Tests are adjusted for the number shown.
    """
    every, problems = read_series(folder)
    series = select(every, methods)
    total = sum(row.seconds for item in series for row in item.rows)
    scored = [item for item in series if not item.is_pair]
    summaries, pairs = [], []
    for column in dict.fromkeys(item.column for item in scored):
        own = [item for item in scored if item.column == column]
        found = compare(own)
        pairs += found
        summaries += mark_best([summarise(item, total) for item in own], found)
    agreements = agreement_matrices([item for item in series if item.is_pair])
    return Analysis(series, summaries, pairs, agreements, list_failures(series), problems, list_earlier(every, series))


def select(series: Sequence[Series], methods: Sequence[str] | None) -> list[Series]:
    """The latest trials of the methods, and trials named by their line; a pair if both of its methods are selected.

    ``ValueError`` for an unknown name.
    """
    if isinstance(methods, str) or not isinstance(methods, (Sequence, type(None))):
        raise ValueError(f"methods={shown(methods)} is not a list; expected names of methods, or None.")
    current = [item for item in series if item.trial is None or not item.trial.superseded]
    if methods is None:
        return current
    names = {name for item in series if not item.is_pair for name in (item.method, item.line)}
    for name in methods:
        if name not in names:
            known = sorted(names)
            raise unknown("method", str(name), known, f"expected one of {', '.join(known)}")
    return [item for item in current if set(item.methods) <= set(methods)] + [
        item for item in series if item.line in methods and item.line != item.method and item.method not in methods
    ]


def list_earlier(every: Sequence[Series], current: Sequence[Series]) -> list[Earlier]:
    """The trials that were superseded by one that is shown, the latest first."""
    found = []
    for item in every:
        if item.is_pair or item in current or not (item.trial and item.trial.superseded):
            continue
        for later in current:
            of_same = (later.method, later.column) == (item.method, item.column)
            if of_same and is_same_experiment(item.config, later.config):
                mean, changed = summarise(item, 0).means.cases, differences(item.config, later.config)
                found.append(Earlier(item.line, item.column, item.trial.shown_date, mean, changed))
                break
    return sorted(found, key=lambda earlier: earlier.date, reverse=True)


def summarise(series: Series, total_seconds: float) -> Summary:
    """Compute the means of a series; cases that failed are counted, and take part in the time only."""
    rows = series.finished
    images = _numbered(row.image for row in rows)
    means = estimate_means(
        torch.tensor([_number(row.score) for row in rows], dtype=torch.double),
        torch.tensor([row.target for row in rows], dtype=torch.long),
        torch.tensor([row.difficult for row in rows], dtype=torch.bool),
        images,
    )
    seconds = sum(row.seconds for row in series.rows)
    curves, has_curve = _curves(rows)
    boxes = series.metric == METRICS[BOX_ACCURACY].of and curves.numel()
    return Summary(
        series,
        means,
        failures=len(series.rows) - len(rows),
        seconds=seconds / len(series.rows),
        share=seconds / total_seconds if total_seconds else 0.0,
        curve=tuple(curves.mean(0).tolist()) if curves.numel() else (),
        box_accuracy=estimate_box_accuracy(curves, images[has_curve], series.delta) if boxes else None,
        constant=sum(row.constant for row in rows),
    )


def compare(column: Sequence[Series]) -> list[Pair]:
    """Compare every two series of a metric on the cases that both have; adjusted for the number of comparisons."""
    cases = sorted({series.case(row) for series in column for row in series.finished})
    place = {case: number for number, case in enumerate(cases)}
    scores = torch.full((len(cases), len(column)), torch.nan, dtype=torch.double)
    for number, series in enumerate(column):
        rows = series.finished
        index = torch.tensor([place[series.case(row)] for row in rows], dtype=torch.long)
        scores[index, number] = torch.tensor([_number(row.score) for row in rows], dtype=torch.double)
    first, second = torch.triu_indices(len(column), len(column), 1)
    differences = scores[:, first] - scores[:, second]
    counts = differences.isfinite().sum(0)
    first, second, differences, counts = (part[..., counts > 0] for part in (first, second, differences, counts))
    p_values = paired_p_values(differences.nan_to_num(0), _numbered(case[:2] for case in cases))
    columns = (first, second, counts, differences.nanmean(0), p_values, holm(p_values))
    return [
        Pair(column[0].column, column[int(a)].line, column[int(b)].line, int(number), *map(float, values))
        for a, b, number, *values in zip(*(part.tolist() for part in columns), strict=True)
    ]


def mark_best(column: Sequence[Summary], pairs: Sequence[Pair]) -> list[Summary]:
    """Mark the best means of a metric, and the lines that do not differ significantly from all of them."""
    direction = is_better_high(column[0].series.metric)
    values = [item.means.cases.value for item in column if item.means.cases.cases]
    if direction is None or len(column) < 2 or not values:
        return list(column)
    top = max(values) if direction else min(values)
    best = {item.series.line for item in column if item.means.cases.value == top}
    told: dict[str, list[bool]] = {}
    for pair in pairs:
        for line, other in ((pair.first, pair.second), (pair.second, pair.first)):
            if other in best and line not in best:
                told.setdefault(line, []).append(pair.adjusted < SIGNIFICANT)
    tied = {line for line, apart in told.items() if not any(apart)}
    marks = dict.fromkeys(best, "best") | dict.fromkeys(tied, "tied")
    return [item._replace(mark=marks.get(item.series.line, "")) for item in column]


def agreement_matrices(series: Sequence[Series]) -> list[Agreement]:
    """Turn the series of ``a|b`` into matrices, one for each configuration they were told apart by."""
    tables: dict[str, dict[tuple[str, str], list[float]]] = {}
    for item in series:
        first, _, second = item.method.partition("|")
        pair = min(first, second), max(first, second)
        scores = tables.setdefault(item.column + item.line.removeprefix(item.method), {}).setdefault(pair, [])
        scores += [_number(row.score) for row in item.finished]
    found = []
    for title, table in tables.items():
        methods = sorted({method for pair in table for method in pair})
        means = {pair: sum(scores) / len(scores) for pair, scores in table.items() if scores}
        means |= {(method, method): 1.0 for method in methods}
        values = [[means.get((min(a, b), max(a, b)), float("nan")) for b in methods] for a in methods]
        found.append(Agreement(title, methods, values, max((len(scores) for scores in table.values()), default=0)))
    return found


def list_failures(series: Iterable[Series]) -> list[Failure]:
    """Group the cases without a score by their message."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for item in series:
        for row in filter(failed, item.rows):
            message = row.error or "The score is not a finite number."
            found.setdefault((item.line, item.column, message), []).append(
                f"{row.image} ({item.class_name(row.target)})"
            )
    return [Failure(*key, cases=cases) for key, cases in found.items()]


def _curves(rows: Sequence[Result]) -> tuple[Tensor, Tensor]:
    """The curves (M, T) of the rows that have one, and which (N,) do; shorter ones are interpolated to the longest."""
    given = [row.curve or () for row in rows]
    longest = max(map(len, given), default=0)
    grid = np.linspace(0, 1, longest)
    full = [
        curve if len(curve) == longest else np.interp(grid, np.linspace(0, 1, len(curve)), curve).tolist()
        for curve in given
        if curve
    ]
    has_curve = torch.tensor([bool(curve) for curve in given], dtype=torch.bool)
    return torch.tensor(full, dtype=torch.double).reshape(len(full), longest), has_curve


def _numbered(names: Iterable[object]) -> Tensor:
    numbers: dict[object, int] = {}
    return torch.tensor([numbers.setdefault(name, len(numbers)) for name in names], dtype=torch.long)


def _number(score: float | None) -> float:
    return float("nan") if score is None else float(score)
