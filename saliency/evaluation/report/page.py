"""The report as one self-contained HTML page: style, script, data and pictures are in it."""

import html
from functools import partial
from pathlib import Path

from saliency.evaluation.report.analysis import SIGNIFICANT, Analysis, Summary
from saliency.evaluation.report.comparison import compare_published, describe_run
from saliency.evaluation.report.gallery import read_gallery
from saliency.evaluation.report.markdown import METHOD_NOTES
from saliency.evaluation.report.series import is_better_high
from saliency.evaluation.report.statistics import Estimate
from saliency.pages import fill, read_web, script_json

LIST_SHOWN = 20
SCRIPTS = ("elements.js", "tables.js", "curves.js", "gallery.js", "page.js")


def html_page(folder: str | Path, analysis: Analysis) -> str:
    """Return the page of an analysed run; the pictures come from the ``gallery`` of its folder."""
    web = partial(read_web, "saliency.evaluation.report")
    facts = dict(describe_run(analysis))
    title = " · ".join(["Benchmark report", *(facts[name] for name in ("Data set", "Network") if name in facts)])
    parts = {
        "title": html.escape(title),
        "style": web("page.css"),
        "script": web(*SCRIPTS),
        "data": script_json(page_data(folder, analysis)),
    }
    return fill(web("page.html"), parts)


def page_data(folder: str | Path, analysis: Analysis) -> dict[str, object]:
    """Return all that the page shows, as plain dicts and lists."""
    cases, problems = read_gallery(folder, analysis)
    configs = {
        item.fingerprint: {name: _shortened(value) for name, value in item.config.items()} for item in analysis.series
    }
    shared = _shared(list(configs.values()))
    return {
        "facts": describe_run(analysis),
        "lines": analysis.lines,
        "dates": analysis.dates,
        "earlier": [{**found._asdict(), "mean": _numbers(found.mean)} for found in analysis.earlier],
        "columns": [_column(analysis, column) for column in analysis.columns],
        "summaries": [_summary(item) for item in analysis.summaries],
        "significant": SIGNIFICANT,
        "pairs": [pair._asdict() for pair in analysis.pairs],
        "published": [
            {**found._asdict(), "rows": [row._asdict() for row in found.rows]} for found in compare_published(analysis)
        ],
        "agreements": [found._asdict() for found in analysis.agreements],
        "agreement_share": 1 - sum(item.share for item in analysis.summaries) if analysis.agreements else 0,
        "failures": [found._asdict() for found in analysis.failures],
        "problems": [*analysis.problems, *problems],
        "shared": shared,
        "configs": {
            name: {key: value for key, value in config.items() if key not in shared} for name, config in configs.items()
        },
        "gallery": cases,
        "notes": METHOD_NOTES,
    }


def _column(analysis: Analysis, column: str) -> dict[str, object]:
    series = next(item.series for item in analysis.summaries if item.series.column == column)
    metric, baseline = series.metric, series.metric_option("baseline")
    return {
        "label": column,
        "metric": metric,
        "box_title": analysis.box_title(column),
        "higher": is_better_high(metric),
        "share": analysis.is_share(column),
        "baseline": baseline if isinstance(baseline, str) else "",
    }


def _summary(item: Summary) -> dict[str, object]:
    means = item.means
    views = (means.cases, means.classes, means.difficult_cases, means.difficult_classes)
    return {
        "line": item.series.line,
        "column": item.series.column,
        "means": [_numbers(found) for found in views],
        "classes": [[item.series.class_name(target), *_numbers(found)] for target, found in means.per_class.items()],
        "failures": item.failures,
        "constant": item.constant,
        "seconds": item.seconds,
        "share": item.share,
        "curve": item.curve,
        "box_accuracy": _numbers(item.box_accuracy[0]) if item.box_accuracy else None,
        "mark": item.mark,
    }


def _numbers(found: Estimate) -> list[float]:
    return [found.value, found.low, found.high, found.cases]


def _shortened(value: object) -> object:
    """A configuration in which a long list, such as the names of a thousand classes, is only counted."""
    if isinstance(value, dict):
        return {name: _shortened(inner) for name, inner in value.items()}
    if isinstance(value, list) and len(value) > LIST_SHOWN:
        return f"{len(value)} entries"
    return value


def _shared(configs: list[dict[str, object]]) -> dict[str, object]:
    """The settings that are the same in every configuration."""
    named = {key: value for key, value in configs[0].items() if key not in ("method", "metric")}
    return {key: value for key, value in named.items() if all(other.get(key) == value for other in configs)}
