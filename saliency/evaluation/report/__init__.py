"""The report of a run: CSV, Markdown and one HTML page."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch

from saliency.evaluation.report.analysis import Analysis, Summary, analyse
from saliency.evaluation.report.markdown import markdown_report
from saliency.evaluation.report.page import html_page
from saliency.evaluation.report.statistics import Estimate
from saliency.evaluation.running.store import Result, write_file

CASE_FIELDS = ("line", "column", "class", *Result._fields)
SUMMARY_FIELDS = (
    *("line", "column", "method", "metric", "fingerprint", "subset", "cases", "failures", "constant_maps"),
    *("mean", "low", "high", "mean_over_classes", "low_over_classes", "high_over_classes"),
    *("seconds_per_case", "share_of_seconds", "max_box_accuracy", "mark"),
)


def write_report(folder: str | Path, out: str | Path | None = None, methods: Sequence[str] | None = None) -> list[Path]:
    """Write ``cases.csv``, ``summary.csv``, ``report.md`` and ``report.html`` to ``out``, and return their paths.

    ``folder`` is that of a run, with its rows, configurations and gallery; ``out`` is the same folder by default. Of a
    method that was run several times with other options or versions, the last trial counts. ``methods`` are those that
    are shown and compared, by their names, or single trials, as ``"mine · 1"``; None is all.
    Raises ``ValueError`` where there are no rows, and for an unknown name.
    """
    with torch.device("cpu"):  # whatever the default device
        analysis = analyse(folder, methods)
    target = Path(folder if out is None else out)
    texts = {
        "cases.csv": _csv(CASE_FIELDS, _case_rows(analysis)),
        "summary.csv": _csv(SUMMARY_FIELDS, _summary_rows(analysis)),
        "report.md": markdown_report(analysis),
        "report.html": html_page(folder, analysis),
    }
    for name, text in texts.items():
        write_file(target / name, text.encode())
    return [target / name for name in texts]


def _case_rows(analysis: Analysis) -> Iterator[list[object]]:
    for series in analysis.series:
        for row in series.rows:
            values = [json.dumps(value) if isinstance(value, (list, tuple)) else value for value in row]
            yield [series.line, series.column, series.class_name(row.target), *values]


def _summary_rows(analysis: Analysis) -> Iterator[list[object]]:
    """A row for all cases, one for the difficult ones, and one for each class."""
    for item in analysis.summaries:
        means, series = item.means, item.series
        yield _summary_row(item, "all", means.cases, means.classes)
        yield _summary_row(item, "difficult", means.difficult_cases, means.difficult_classes)
        for target, found in means.per_class.items():
            yield _summary_row(item, f"class {series.class_name(target)}", found, None)


def _summary_row(item: Summary, subset: str, cases: Estimate, classes: Estimate | None) -> list[object]:
    series, whole = item.series, subset == "all"
    best = item.box_accuracy[0].value if item.box_accuracy else None
    return [
        *(series.line, series.column, series.method, series.metric, series.fingerprint, subset),
        *(cases.cases, *((item.failures, item.constant) if whole else (None, None))),
        *(cases.value, cases.low, cases.high),
        *((classes.value, classes.low, classes.high) if classes else (None, None, None)),
        *((item.seconds, item.share, best, item.mark) if whole else (None, None, None, None)),
    ]


def _csv(fields: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """CSV text; unknown values (None or NaN) are empty."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(fields)
    writer.writerows([None if value != value else value for value in row] for row in rows)
    return file.getvalue()
