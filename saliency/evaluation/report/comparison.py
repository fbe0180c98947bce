"""A run beside the published results for its setting, and the setting in words."""

from typing import NamedTuple

from saliency.evaluation.report.analysis import Analysis, Summary
from saliency.evaluation.report.published import (
    PUBLISHED_IN,
    published_accuracy,
    published_method,
    published_setting,
    setting_differences,
)
from saliency.evaluation.report.series import Series

POINTING_GAME = "pointing_game"


class Comparison(NamedTuple):
    """A line's mean over classes in [0, 1], all and difficult, NaN where not measured; and the published % or None."""

    line: str
    measured: tuple[float, float]
    published: tuple[float | None, float | None]


class Published(NamedTuple):
    """The published table of a setting, with the run's own lines, and how the run's setting differs."""

    title: str
    rows: list[Comparison]
    differences: list[str]


def compare_published(analysis: Analysis) -> list[Published]:
    """Return the published pointing game for every setting of the run that has one, each column for itself."""
    groups: dict[tuple[str, str, str, str], list[Summary]] = {}
    for item in analysis.summaries:
        if item.series.metric == POINTING_GAME:
            key = (item.series.dataset, *_network(item.series), item.series.column)
            groups.setdefault(key, []).append(item)
    return [
        _beside(dataset, arch, weights, items)
        for (dataset, arch, weights, _), items in groups.items()
        if published_setting(dataset, arch)
    ]


def describe_run(analysis: Analysis) -> list[tuple[str, str]]:
    """Return the facts at the head of a report: data sets, networks, counts and versions, each with its name."""
    configs = [item.config for item in analysis.series]
    rows = [(item, row) for item in analysis.series for row in item.rows]
    cases = {item.case(row) for item, row in rows}
    versions = {
        f"{name} {version}" for config in configs for name, version in sorted(config.get("versions", {}).items())
    }
    failures = sum(len(found.cases) for found in analysis.failures)
    facts = [
        ("Data set", ", ".join(sorted({item.dataset for item in analysis.series} - {""}))),
        ("Network", ", ".join(sorted({_named_network(item) for item in analysis.series} - {""}))),
        ("Images", f"{len({case[:2] for case in cases}):,}"),
        ("Cases", f"{len(cases):,}"),
        ("Results", f"{len(rows):,} rows, {failures:,} failed"),
        ("Versions", ", ".join(sorted(versions))),
    ]
    return [(name, text) for name, text in facts if text]


def _beside(dataset: str, arch: str, weights: str, items: list[Summary]) -> Published:
    """The published table with the run's lines; methods that the run lacks come last."""
    table = published_accuracy(dataset, arch)
    setting = " ".join(published_setting(dataset, arch) or ())
    missing: tuple[float | None, float | None] = (None, None)
    rows = [
        Comparison(
            item.series.line,
            (item.means.classes.value, item.means.difficult_classes.value),
            table.get(published_method(item.series.method), missing),
        )
        for item in sorted(items, key=lambda item: -item.means.classes.value)
    ]
    played = {published_method(item.series.method) for item in items}
    nan = float("nan")
    rows += [Comparison(name, (nan, nan), values) for name, values in table.items() if name not in played]
    images = len({row.image for item in items for row in item.series.rows})
    tolerance = items[0].series.metric_option("tolerance")
    title = f"Pointing game, mean over classes in %, beside {setting} of {PUBLISHED_IN}."
    return Published(title, rows, setting_differences(dataset, arch, weights, images, tolerance))


def _network(series: Series) -> tuple[str, str]:
    network = series.config.get("network", {})
    return str(network.get("arch", "")), str(network.get("weights") or "")


def _named_network(series: Series) -> str:
    """The network and its weights; one of the user's own by its class, or weights by their digest."""
    network = series.config.get("network", {})
    arch, weights = _network(series)
    digest = str(network.get("tensors", ""))[:8]
    return f"{arch or network.get('class', '')} {weights or (digest and f'with the weights {digest}')}".strip()
