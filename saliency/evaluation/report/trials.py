"""Trials: runs of one method under the same name, with different options or versions. The latest of a metric counts."""

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, NamedTuple, TypeAlias

Config: TypeAlias = dict[str, Any]  # as JSON holds it
Key: TypeAlias = tuple[str, str, str]  # method, metric, fingerprint

EXPERIMENT = ("dataset", "network", "outputs")  # trials are compared only where these are equal
METHOD = ("function", "options", "session")
AROUND = ("versions", "device", "dtype")
FUNCTIONS = {"function": "the method", "metric_function": "the metric"}
_DIGEST = re.compile(r"[0-9a-f]{16,}")


class Trial(NamedTuple):
    """The trial of a method that a configuration belongs to: its number among ``total``, by date, and its date.

    It is ``superseded`` if the same metric was measured in a later trial; a pair of methods, if either has a later one.
    """

    number: int
    total: int
    date: str
    superseded: bool

    @property
    def shown_date(self) -> str:
        """The date, to the minute.

        >>> Trial(1, 2, "2026-01-31T12:30:59.5+00:00", False).shown_date
        '2026-01-31 12:30 UTC'
        """
        return f"{datetime.fromisoformat(self.date):%Y-%m-%d %H:%M %Z}" if self.date else "of unknown date"


class _Known(NamedTuple):
    """A configuration's date, what it measures, and the trial of each of its methods in its experiment, as texts."""

    date: str
    measured: str
    trials: dict[str, str]


def find_trials(configs: Mapping[Key, Config]) -> dict[Key, Trial]:
    """The trial of each configuration. A method whose trials have no dates, as in old releases, is left out."""
    known = {key: _read(key, config) for key, config in configs.items()}
    dates: dict[str, dict[str, str]] = defaultdict(dict)  # method -> trial -> its latest date
    latest: dict[str, str] = {}  # what is measured -> its latest date
    for own in known.values():
        latest[own.measured] = max(own.date, latest.get(own.measured, ""))
        for method, trial in own.trials.items():
            dates[method][trial] = max(own.date, dates[method].get(trial, ""))
    found = {}
    for key, own in known.items():
        superseded = own.date < latest[own.measured]
        for method, trial in own.trials.items():
            ordered = sorted(dates[method], key=dates[method].__getitem__)
            newest = dates[method][ordered[-1]]
            superseded = superseded or (len(own.trials) > 1 and trial != ordered[-1] and newest > own.date)
            if newest:
                found[key] = Trial(ordered.index(trial) + 1, len(ordered), own.date, superseded)
    return found


def _read(key: Key, config: Config) -> _Known:
    experiment, around = (_text([config.get(part) for part in parts]) for parts in (EXPERIMENT, AROUND))
    methods = config.get("methods", {key[0]: config})
    trials = {
        f"{name} {experiment}": _text([described.get(part) for part in METHOD]) + around
        for name, described in methods.items()
    }
    date = ""
    with suppress(KeyError, TypeError, ValueError):
        date = datetime.fromisoformat(config["date"]).isoformat()
    return _Known(date, _text([key[0], key[1], config.get("metric_options")]) + experiment, trials)


def _text(value: object) -> str:
    return json.dumps(value, sort_keys=True)


def experiment_settings(configs: Sequence[Config]) -> list[dict[str, str]]:
    """The settings that distinguish experiments, by dotted names. Digests are shown as numbers, by date.

    They are left out where the other settings suffice.
    """
    flat = [flatten({part: config[part] for part in EXPERIMENT if part in config}) for config in configs]
    orders: dict[str, list[str]] = defaultdict(list)
    for config in sorted(range(len(configs)), key=lambda place: str(configs[place].get("date", ""))):
        for name, value in flat[config].items():
            if _DIGEST.fullmatch(value) and value not in orders[name]:
                orders[name].append(value)
    plain = [{name: value for name, value in own.items() if name not in orders} for own in flat]
    if len(set(map(_text, plain))) == len(set(map(_text, flat))):
        return plain
    return [
        {name: f"#{orders[name].index(value) + 1}" if name in orders else value for name, value in own.items()}
        for own in flat
    ]


def flatten(config: Mapping[str, object], above: str = "") -> dict[str, str]:
    """Nested settings as one dict of texts, by dotted names.

    >>> flatten({"network": {"arch": "vgg16", "size": 224}})
    {'network.arch': 'vgg16', 'network.size': '224'}
    """
    flat: dict[str, str] = {}
    for key, value in config.items():
        name = f"{above}.{key}" if above else str(key)
        if isinstance(value, dict):
            flat |= flatten(value, name)
        else:
            flat[name] = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return flat


def is_same_experiment(config: Config, other: Config) -> bool:
    """Whether data, network and outputs are the same."""
    return all(config.get(part) == other.get(part) for part in EXPERIMENT)


def differences(config: Config, later: Config) -> str:
    """What was different in an earlier trial of a method, in words."""
    old, new = (
        flatten({**one.get("options", {}), **{part: one[part] for part in AROUND if part in one}})
        for one in (config, later)
    )
    differing = sorted(name for name in {**old, **new} if old.get(name) != new.get(name))
    changed = [f"{name}={old[name]}" if name in old else f"{name} not set" for name in differing]
    if not changed:
        newer = [what for part, what in FUNCTIONS.items() if config.get(part) != later.get(part)]
        return f"another version of {' and '.join(newer)}" if newer else "another process"
    return ", ".join(text if len(text) <= 60 else f"{text[:40]}…{text[-16:]}" for text in changed)
