"""Do our hits and misses equal TorchRay's? Its own functions and pointing game on the cases of a run, one by one.

    python -m benchmarks.torchray_agreement ARGUMENTS

takes the arguments of ``saliency benchmark``, finishes that run, and explains every case again with TorchRay in
the settings of its benchmark. TorchRay's verdicts are kept in the run's folder and reused.
"""

import json
import sys
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from benchmarks import torchray_loop
from benchmarks.pointing_game import build_parser
from benchmarks.torchray_loop import Networks, make_networks
from saliency.cli.preparing import Setup, make_setup, run_setup
from saliency.cli.settings import TORCHRAY
from saliency.evaluation.cases import Case, load_cases
from saliency.evaluation.running.compute import choose_targets
from saliency.evaluation.running.store import Result, read_results

EQUAL = 0.995  # the share of cases that has to be
Key = tuple[str, int, str]  # image, target and method


class Verdict(NamedTuple):
    """TorchRay's verdict on a case."""

    image: str
    target: int
    method: str
    hit: bool
    point: tuple[int, int]

    @property
    def key(self) -> Key:
        """The case and the method."""
        return self.image, self.target, self.method


def main(argv: Sequence[str] | None = None) -> int:
    """Compare, and print a table and every case that differs."""
    arguments = build_parser().parse_args(argv)
    arguments.method, arguments.metric = ["torchray"], ["pointing_game"]
    setup = make_setup(arguments)
    played = run_setup(setup).fingerprints
    rows = {(row.image, row.target, row.method): row for row in read_results(setup.out) if row.fingerprint in played}
    kept = setup.out / "torchray.jsonl"
    verdicts = {verdict.key: verdict for verdict in read_verdicts(kept)}
    wanted = {key: row for key, row in rows.items() if row.score is not None}
    with kept.open("a", encoding="utf-8") as file:
        missing = wanted.keys() - verdicts.keys()
        for verdict in tqdm(
            judge(setup, make_networks(setup.model), missing), total=len(missing), disable=None, unit="case"
        ):
            verdicts[verdict.key] = verdict
            file.write(json.dumps(verdict._asdict()) + "\n")
            file.flush()
    return print_table({key: (row, verdicts[key]) for key, row in wanted.items() if key in verdicts})


def read_verdicts(path: Path) -> Iterator[Verdict]:
    """The verdicts of earlier runs. An incomplete last line is removed."""
    if not path.is_file():
        return
    whole, newline, _ = path.read_text("utf-8").rpartition("\n")
    path.write_text(whole + newline, "utf-8")
    for line in whole.splitlines():
        yield Verdict(**json.loads(line))


def judge(setup: Setup, networks: Networks, missing: Collection[Key]) -> Iterator[Verdict]:
    """TorchRay's verdicts on the cases that have none, image by image."""
    wanted: dict[str, set[tuple[int, str]]] = defaultdict(set)
    for image, target, method in missing:
        wanted[image].add((target, method))
    for index, annotation in enumerate(setup.dataset.annotations):
        name, size = annotation.name, annotation.size[::-1]
        labels = tuple(sorted({target for target, _ in wanted[name]}))
        if not labels:
            continue
        planned = [Case(index, annotation, label) for label in labels]
        cases = load_cases(setup.dataset, setup.preprocessing, planned)
        choose_targets(setup.model, setup.outputs, [cases])
        for case in cases:
            for method in (method for method in TORCHRAY if (case.label, method) in wanted[name]):
                map = torchray_loop.explain(method, networks, case.input[None].clone(), case.target, size)
                x, y = torchray_loop.point_of(map)
                yield Verdict(name, case.label, method, torchray_loop.is_hit(case.mask, [x, y]), (x, y))


def print_table(pairs: dict[Key, tuple[Result, Verdict]]) -> int:
    """Print how many cases agree, and those that do not; 0 if almost all agree apart from the edge of the disc.

    TorchRay's disc is open: at a distance of exactly the tolerance, one maximum is a hit here and a miss there.
    """
    print("| method | saliency | TorchRay | equal verdicts | equal maxima |\n| --- | ---: | ---: | ---: | ---: |")
    for method in TORCHRAY:
        own = [compare(*pair) for key, pair in pairs.items() if key[2] == method]
        if own:
            shares = " | ".join(f"{sum(found) / len(own):.1%}" for found in zip(*own, strict=True))
            print(f"| {method} | {shares} |")
    compared = [compare(*pair) for pair in pairs.values()]
    for row, verdict in pairs.values():
        if bool(row.score) != verdict.hit:
            edge = "the same maximum, at the edge of the disc" if compare(row, verdict).maximum else "another maximum"
            print(f"{row.image} {row.target} {row.method}: {row.score:g} at {row.point}, {verdict.hit:g}: {edge}")
    verdicts = sum(one.verdict for one in compared) / max(1, len(compared))
    explained = sum(one.verdict or one.maximum for one in compared) / max(1, len(compared))
    print(f"\n{verdicts:.2%} of {len(compared)} cases are equal, {explained:.2%} but for the edge of the disc")
    return 0 if explained >= EQUAL else 1


class Comparison(NamedTuple):
    """Our verdict on a case and TorchRay's, and which parts of them are equal."""

    ours: bool
    theirs: bool
    verdict: bool
    maximum: bool


def compare(row: Result, verdict: Verdict) -> Comparison:
    """Compare the two verdicts on a case."""
    hit = bool(row.score)
    return Comparison(hit, verdict.hit, hit == verdict.hit, row.point == tuple(verdict.point))


if __name__ == "__main__":
    sys.exit(main())
