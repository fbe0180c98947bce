"""The report as Markdown tables."""

import math
from collections.abc import Iterable, Iterator, Sequence

from saliency.evaluation.report.analysis import SIGNIFICANT, Analysis, Summary
from saliency.evaluation.report.comparison import Comparison, compare_published, describe_run
from saliency.evaluation.report.series import is_better_high
from saliency.evaluation.report.statistics import LEVEL, NOTHING, RESAMPLES, Estimate

CLASSES_SHOWN = 100
PAIRS_SHOWN = 200
FAILURES_SHOWN = 50
CASES_SHOWN = 5

CONSTANT_NOTE = (
    "A constant map has no maximum and no order: the pointing game scores the chance that a random pixel hits, and "
    "metrics that hide pixels draw their order."
)
METHOD_NOTES = (
    "A case is an image and a class in it. Cases that failed are left out of the means and counted.",
    "A mean over classes leaves out classes without cases. Difficult: the objects of the class cover less than a "
    "quarter of the image, and another class is present.",
    f"Intervals hold {100 * LEVEL:.0f} % of {RESAMPLES} bootstrap resamples of the images, since the cases of an "
    "image are not independent; with few images, or where all cases agree, they are too narrow.",
    "A method that was run again under its name, with other options or versions, counts with its last trial for each "
    "metric; earlier trials are listed apart and take part in no mean and no test.",
    "Pairs are compared on the cases that both have: mean difference, and a sign-flip permutation test in which all "
    "cases of an image change sign together; p-values are adjusted for the number of pairs of a "
    "metric that are shown (Holm).",
)


def markdown_report(analysis: Analysis) -> str:
    """Return the whole report as Markdown, one section for each question."""
    sections = [
        ("Results", _results(analysis)),
        ("Constant maps", _constant(analysis)),
        ("Earlier trials", _earlier(analysis)),
        ("Subsets", _subsets(analysis)),
        ("Published", _published(analysis)),
        ("Classes", _classes(analysis)),
        ("Pairs", _pairs(analysis)),
        ("Agreement", _agreement(analysis)),
        ("Time", _time(analysis)),
        ("Failures", _failures(analysis)),
        ("How the numbers are made", (f"- {note}" for note in METHOD_NOTES)),
    ]
    facts = (f"- {name}: {escape(text)}" for name, text in describe_run(analysis))
    parts = ["# Benchmark report", "\n".join(facts)]
    for title, lines in sections:
        text = "\n".join(lines).strip()
        parts += [f"## {title}", text] if text else []
    return "\n\n".join(parts) + "\n"


def table(header: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """Return a Markdown table, its first columns aligned to the left, the others to the right.

    >>> print(table(["method", "hits"], [["cam", "9"]]))
    | method | hits |
    | --- | ---: |
    | cam | 9 |
    """
    lines = [header, ["---"] * left + ["---:"] * (len(header) - left), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def escape(text: str) -> str:
    r"""Return the text with the special characters of Markdown and HTML escaped.

    >>> escape("a|b <i> *c*")
    'a\\|b &lt;i> \\*c\\*'
    """
    for sign in "\\|*`[]":
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.replace("&", "&amp;").replace("<", "&lt;").split())


def number(value: float, share: bool) -> str:
    """Return a mean in % with one decimal, or with three decimals or digits; a dash for NaN.

    >>> number(0.98765, True), number(0.98765, False), number(float("nan"), True)
    ('98.8', '0.988', '–')
    """
    if math.isnan(value):
        return "–"
    if share:
        return f"{100 * value:.1f}"
    return f"{value:.3f}" if 0.01 <= abs(value) < 100 else f"{value:.3g}"


def estimate(found: Estimate, share: bool) -> str:
    """Return a mean with its interval.

    >>> estimate(Estimate(0.5, 0.25, 0.75, 8), share=True)
    '50.0 [25.0, 75.0]'
    """
    interval = f" [{number(found.low, share)}, {number(found.high, share)}]" if not math.isnan(found.low) else ""
    return number(found.value, share) + interval


def _results(analysis: Analysis) -> Iterator[str]:
    found = {(item.series.line, item.series.column): item for item in analysis.summaries}
    if not found:
        return
    yield (
        "Mean over cases [95 % interval]. **Bold**: the best. ≈: not significantly different from the best "
        f"(paired test, adjusted p ≥ {SIGNIFICANT}). MaxBoxAcc has no such test.\n"
    )
    dates = {line: f", {date}" for line, date in analysis.dates.items()}
    header, rows = ["method"], [[escape(line + dates.get(line, ""))] for line in analysis.lines]
    for column in analysis.columns:
        header.append(_heading(analysis, column))
        for row, line in zip(rows, analysis.lines, strict=True):
            row.append(_marked(found.get((line, column)), analysis.is_share(column)))
        own = [item for item in analysis.summaries if item.series.column == column and item.box_accuracy]
        if own:
            header.append(f"{escape(analysis.box_title(column))} (%) ↑")
            best = max(item.box_accuracy[0].value for item in own if item.box_accuracy)
            for row, line in zip(rows, analysis.lines, strict=True):
                row.append(_box_accuracy(found.get((line, column)), best))
    yield table(header, rows)


def _constant(analysis: Analysis) -> Iterator[str]:
    found = [item for item in analysis.summaries if item.constant]
    if found:
        yield f"{CONSTANT_NOTE}\n"
    for item in found:
        shown = f"{escape(item.series.line)}, {escape(item.series.column)}"
        yield f"- {shown}: {item.constant} of {item.means.cases.cases} maps"


def _earlier(analysis: Analysis) -> Iterator[str]:
    for found in analysis.earlier:
        mean = estimate(found.mean, found.column in analysis.columns and analysis.is_share(found.column))
        what = f"{escape(found.column)} {mean} of {found.mean.cases} cases; {escape(found.differences)}"
        yield f"- {escape(found.line)}, {found.date}: {what}"


def _heading(analysis: Analysis, column: str) -> str:
    metric = next(item.series.metric for item in analysis.summaries if item.series.column == column)
    arrow = {True: " ↑", False: " ↓", None: ""}[is_better_high(metric)]
    return escape(column) + (" (%)" if analysis.is_share(column) else "") + arrow


def _marked(item: Summary | None, share: bool) -> str:
    if item is None:
        return ""
    text = estimate(item.means.cases, share)
    return {"best": f"**{text}**", "tied": f"{text} ≈"}.get(item.mark, text)


def _box_accuracy(item: Summary | None, best: float) -> str:
    if item is None or item.box_accuracy is None:
        return ""
    text = estimate(item.box_accuracy[0], True)
    return f"**{text}**" if item.box_accuracy[0].value == best else text


def _subsets(analysis: Analysis) -> Iterator[str]:
    for column in analysis.columns:
        share = analysis.is_share(column)
        header = [_heading(analysis, column), "cases", "failed", "over cases", "over classes"]
        header += ["difficult cases", "over difficult cases", "over their classes"]
        yield (
            table(
                header,
                [
                    [
                        escape(item.series.line),
                        str(item.means.cases.cases),
                        str(item.failures),
                        *(estimate(found, share) for found in (item.means.cases, item.means.classes)),
                        str(item.means.difficult_cases.cases),
                        estimate(item.means.difficult_cases, share),
                        estimate(item.means.difficult_classes, share),
                    ]
                    for item in analysis.ranked(column)
                ],
            )
            + "\n"
        )


def _published(analysis: Analysis) -> Iterator[str]:
    for found in compare_published(analysis):
        yield f"{found.title}\n"
        yield table(
            ["method", "here", "published", "here, difficult", "published, difficult"], map(_compared, found.rows)
        )
        yield ""
        yield from (f"- {escape(sentence)}" for sentence in found.differences)


def _compared(row: Comparison) -> list[str]:
    theirs = [f"{value:.1f}" if value is not None else "–" for value in row.published]
    ours = [number(value, True) for value in row.measured]
    return [escape(row.line), ours[0], theirs[0], ours[1], theirs[1]]


def _classes(analysis: Analysis) -> Iterator[str]:
    for column in analysis.columns:
        own, share = analysis.ranked(column), analysis.is_share(column)
        cases: dict[str, int] = {}
        means: dict[tuple[str, str], Estimate] = {}
        for item in own:
            for target, found in item.means.per_class.items():
                name = item.series.class_name(target)
                cases[name] = max(cases.get(name, 0), found.cases)
                means[item.series.line, name] = found
        shown = sorted(cases, key=lambda name: (-cases[name], name))[:CLASSES_SHOWN]
        header = [_heading(analysis, column), "cases", *(escape(item.series.line) for item in own)]
        lines = [item.series.line for item in own]
        rows = [
            [escape(name), str(cases[name]), *(number(means.get((line, name), NOTHING).value, share) for line in lines)]
            for name in shown
        ]
        yield table(header, rows) + "\n"
        if len(shown) < len(cases):
            yield f"{len(cases) - len(shown)} classes with fewer cases are in summary.csv.\n"


def _pairs(analysis: Analysis) -> Iterator[str]:
    for column in analysis.columns:
        share = analysis.is_share(column)
        own = sorted((pair for pair in analysis.pairs if pair.column == column), key=lambda pair: pair.adjusted)
        if not own:
            continue
        rows = [
            [
                f"{escape(pair.first)} − {escape(pair.second)}",
                str(pair.cases),
                ("+" if pair.difference > 0 else "") + number(pair.difference, share),
                f"{pair.p_value:.2g}",
                f"{pair.adjusted:.2g}",
            ]
            for pair in own[:PAIRS_SHOWN]
        ]
        yield table([_heading(analysis, column), "cases", "difference", "p", "p adjusted"], rows) + "\n"
        if len(own) > len(rows):
            yield f"{len(own) - len(rows)} pairs with larger p-values are in report.html.\n"


def _agreement(analysis: Analysis) -> Iterator[str]:
    for found in analysis.agreements:
        rows = [
            [escape(method), *(number(value, False) for value in values)]
            for method, values in zip(found.methods, found.values, strict=True)
        ]
        yield table([escape(found.title), *map(escape, found.methods)], rows) + "\n"


def _time(analysis: Analysis) -> Iterator[str]:
    rows = [
        [
            f"{escape(item.series.line)}, {escape(item.series.column)}",
            f"{item.seconds:.3g}",
            f"{100 * item.share:.1f}",
        ]
        for item in sorted(analysis.summaries, key=lambda item: -item.share)
    ]
    rest = 1 - sum(item.share for item in analysis.summaries)
    if analysis.agreements:
        rows.append(["agreement of all pairs", "", f"{100 * rest:.1f}"])
    if rows:
        yield table(["method, metric", "seconds per case", "% of all seconds"], rows)


def _failures(analysis: Analysis) -> Iterator[str]:
    shown = analysis.failures[:FAILURES_SHOWN]
    for found in shown:
        cases = ", ".join(found.cases[:CASES_SHOWN]) + (", …" if len(found.cases) > CASES_SHOWN else "")
        head = f"- {escape(found.line)}, {escape(found.column)}: {len(found.cases)} failed"
        yield f"{head}: {escape(found.message)} In: {escape(cases)}"
    if len(shown) < len(analysis.failures):
        yield f"- {len(analysis.failures) - len(shown)} more messages are in cases.csv."
    yield from (f"- {escape(problem)}" for problem in analysis.problems)
