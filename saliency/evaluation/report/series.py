"""Series: the rows of a run in groups of one configuration, named so that no two configurations look alike."""

import json
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from saliency.evaluation.metrics import METRICS
from saliency.evaluation.report.trials import Config, Key, Trial, experiment_settings, find_trials, flatten
from saliency.evaluation.running.store import Result, read_results

Case = tuple[str, str, int]  # data set, image, class

BOX_ACCURACY = "max_box_accuracy"
DELTA = METRICS[BOX_ACCURACY].defaults["delta"]


class Series(NamedTuple):
    """All rows of one method, metric and configuration.

    ``line`` names the method and ``column`` the metric, each with the options that tell it apart from its namesakes.
    ``classes`` are the names of the data set's classes, with their number where two have the same. ``delta`` is what
    MaxBoxAcc counts as a hit.
    """

    line: str
    column: str
    rows: tuple[Result, ...]
    config: Config
    classes: tuple[str, ...] = ()
    delta: Any = DELTA
    trial: Trial | None = None

    @property
    def method(self) -> str:
        """The method's own name."""
        return self.rows[0].method

    @property
    def metric(self) -> str:
        """The metric's own name."""
        return self.rows[0].metric

    @property
    def fingerprint(self) -> str:
        """The fingerprint that the rows share."""
        return self.rows[0].fingerprint

    @property
    def dataset(self) -> str:
        """The name of the data set, or nothing where the configuration is missing."""
        return str(self.config.get("dataset", {}).get("name", ""))

    @property
    def finished(self) -> list[Result]:
        """The rows that have a finite score."""
        return [row for row in self.rows if not failed(row)]

    @property
    def hits(self) -> bool:
        """Whether the metric's scores are hits and misses."""
        return self.metric in METRICS and METRICS[self.metric].hits

    @property
    def is_pair(self) -> bool:
        """Whether the metric compares two methods."""
        return self.metric in METRICS and METRICS[self.metric].kind == "pair"

    @property
    def methods(self) -> list[str]:
        """The method, or the two that are compared."""
        return self.method.split("|") if self.is_pair else [self.method]

    def class_name(self, target: int) -> str:
        """The name of a class, or its number where it has none."""
        return self.classes[target] if 0 <= target < len(self.classes) else f"class {target}"

    def metric_option(self, name: str) -> Any:
        """The value of an option of the metric: its default unless the run gave it, None where there is none."""
        own = self.config.get("metric_options", {})
        if name in own or self.metric not in METRICS:
            return own.get(name)
        return METRICS[self.metric].defaults.get(name)

    def case(self, row: Result) -> Case:
        """The case of a row, whatever the method."""
        return self.dataset, row.image, row.target


def failed(row: Result) -> bool:
    """Whether the row has no score to count: an error, none, or NaN."""
    return bool(row.error) or row.score is None or not math.isfinite(row.score)


def read_series(folder: str | Path) -> tuple[list[Series], list[str]]:
    """Return the series of a run's folder, and the problems of its files, each in a sentence.

    The columns come in the order of METRICS, the lines by name. Raises ``ValueError`` where there are no rows.
    """
    groups: dict[tuple[str, str, str], list[Result]] = {}
    problems: list[str] = []
    for row in read_results(folder, problems):
        groups.setdefault((row.method, row.metric, row.fingerprint), []).append(row)
    if not groups:
        raise ValueError(f"folder={str(folder)!r} holds no rows; expected the folder of a run.")
    configs = {key: _read_config(Path(folder), key[2], problems) for key in sorted(groups, key=_column_order)}
    keys, deltas, trials = list(configs), _read_deltas(Path(folder), {key[2] for key in configs}), find_trials(configs)
    lines, columns = _name_lines(configs, trials)
    return [
        Series(
            line,
            column,
            tuple(sorted(groups[key], key=lambda row: (row.image, row.target))),
            configs[key],
            _class_names(configs[key]),
            deltas.get(key[2], DELTA),
            trials.get(key),
        )
        for key, line, column in zip(keys, lines, columns, strict=True)
    ], problems


def _name_lines(configs: Mapping[Key, Config], trials: Mapping[Key, Trial]) -> tuple[list[str], list[str]]:
    """The line and the column of each configuration: the names of method and metric, with what tells each apart.

    Of a method with trials it is their number and the experiment, else whatever differs.
    """
    keys = list(configs)
    of_method = [_settings(config, method=True) for config in configs.values()]
    of_metric = [_settings(config, method=False) for config in configs.values()]
    _separate(keys, of_method, of_metric)
    dated = [key for key in keys if key in trials]
    experiments = dict(zip(dated, experiment_settings([configs[key] for key in dated]), strict=True))
    of_method = [experiments.get(key, own) for key, own in zip(keys, of_method, strict=True)]
    lines = name_apart([key[0] for key in keys], of_method)
    for place, key in enumerate(keys):
        if key in trials and trials[key].total > 1 and "methods" not in configs[key]:
            lines[place] = f"{key[0]} · {trials[key].number}{lines[place].removeprefix(key[0])}"
    return lines, name_apart([key[1] for key in keys], of_metric)


def name_apart(names: Sequence[str], settings: Sequence[dict[str, str]]) -> list[str]:
    """Return every name with those of its settings in which its namesakes differ.

    >>> name_apart(["rise", "rise", "cam"], [{"num_masks": "9"}, {"num_masks": "20"}, {"num_masks": "1"}])
    ['rise (num_masks=9)', 'rise (num_masks=20)', 'cam']
    """
    found = []
    for name, own in zip(names, settings, strict=True):
        others = [other for rival, other in zip(names, settings, strict=True) if rival == name]
        keys = sorted({key for other in others for key in other})
        differing = [key for key in keys if len({other.get(key) for other in others}) > 1]
        parts = [f"{key}={_short(own[key])}" if key in own else f"{key} not set" for key in differing]
        found.append(f"{name} ({', '.join(parts)})" if parts else name)
    return found


def is_better_high(metric: str) -> bool | None:
    """Whether higher scores of the metric are better; None for a metric that is not in METRICS."""
    return METRICS[metric].higher_is_better if metric in METRICS else None


def _column_order(key: tuple[str, str, str]) -> tuple[int, str, str, str]:
    method, metric, fingerprint = key
    return list(METRICS).index(metric) if metric in METRICS else len(METRICS), metric, method, fingerprint


def _read_config(folder: Path, fingerprint: str, problems: list[str]) -> Config:
    try:
        config = json.loads((folder / "configs" / f"{fingerprint}.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        config, reason = None, f"{type(error).__name__}"
    else:
        reason = "no JSON object"
    if not isinstance(config, dict):
        problems.append(f"configs/{fingerprint}.json cannot be read ({reason}); its options and classes are unknown.")
        return {"fingerprint": fingerprint}
    return config


def _read_deltas(folder: Path, known: Collection[str]) -> Config:
    """What MaxBoxAcc counts as a hit, by the fingerprint of the curves that it looks at, where a run asked for it."""
    found = {}
    paths = [path for path in (folder / "configs").glob("*.json") if path.stem not in known]
    for path in sorted(paths, key=lambda path: path.stat().st_mtime):
        with suppress(OSError, ValueError, KeyError, TypeError):
            config = json.loads(path.read_text("utf-8"))
            if config["metric"] == BOX_ACCURACY:
                found[config["of"]] = config["metric_options"].get("delta", DELTA)
    return found


def _class_names(config: Config) -> tuple[str, ...]:
    names = [str(name) for name in config.get("dataset", {}).get("classes", [])]
    counts = Counter(names)
    return tuple(name if counts[name] == 1 else f"{name} ({number})" for number, name in enumerate(names))


def _settings(config: Config, method: bool) -> dict[str, str]:
    """The settings, by dotted names, that belong to the metric, or all others but the names of both."""
    if not method:
        return flatten(config.get("metric_options", {}))
    named = ("method", "metric", "metric_function", "metric_session", "metric_options", "date")
    rest = {key: value for key, value in config.items() if key not in named}
    return flatten(rest.pop("options", {})) | flatten(rest)


def _separate(keys: list[tuple[str, str, str]], lines: list[dict[str, str]], columns: list[dict[str, str]]) -> None:
    """Add the fingerprint where nothing else, in the short form that is shown, tells two series apart."""

    def shown(place: int) -> tuple[str, ...]:
        settings = (sorted((key, _short(value)) for key, value in part[place].items()) for part in (lines, columns))
        return (*keys[place][:2], *map(str, settings))

    places = [shown(place) for place in range(len(keys))]
    counts = Counter(places)
    for place, key in enumerate(keys):
        if counts[places[place]] > 1:
            lines[place]["fingerprint"] = key[2]


def _short(value: str) -> str:
    return value if len(value) <= 40 else f"{value[:20]}…{value[-16:]}"
