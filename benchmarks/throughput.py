"""Images per second of the whole benchmark, ours and TorchRay's: seven methods and the pointing game, in turns.

    python -m benchmarks.throughput --dataset imagenet --root DIR --arch resnet50 --weights FILE --threads 2

takes the arguments of ``saliency benchmark``. Both libraries read the photos, explain every case by the same
methods with the same network, and judge the maxima of the maps at the size of the photo; ours writes its rows, too. The
rounds take turns, each on photos of its own, and the ratio is taken within a round.
"""

import statistics
import sys
import tempfile
import time
from argparse import Namespace
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from benchmarks.pointing_game import build_parser
from benchmarks.torchray_agreement import judge
from benchmarks.torchray_loop import Networks, make_networks
from saliency.cli.preparing import Setup, make_setup, run_setup
from saliency.cli.settings import TORCHRAY
from saliency.evaluation.cases import Dataset, labels_of
from saliency.evaluation.datasets.photos import ImageSet
from saliency.evaluation.running.store import read_results


class Round(NamedTuple):
    """Seconds of both libraries, and those that our methods took."""

    ours: float
    theirs: float
    spent: dict[str, float]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print the results."""
    parser = build_parser()
    parser.add_argument("--images", type=int, default=32, help="photos of a round (32)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds (5), after one on the same photos to warm up")
    arguments = parser.parse_args(argv)
    print_table(measure(arguments), arguments.images)
    return 0


def measure(arguments: Namespace) -> list[Round]:
    """The rounds, without the one that warms up: ``images`` photos each, of the arguments of ``saliency benchmark``."""
    arguments.method, arguments.metric, arguments.gallery = ["torchray"], ["pointing_game"], 0
    setup = make_setup(arguments)
    networks = make_networks(setup.model)
    measured = []
    for number in range(-1, arguments.rounds):
        start = max(number, 0) * arguments.images
        with tempfile.TemporaryDirectory() as folder:
            part = setup._replace(dataset=take(setup.dataset, start, arguments.images), out=Path(folder))
            ours = run_ours(part)
            spent: dict[str, float] = defaultdict(float)
            for row in read_results(folder):
                spent[row.method] += row.seconds
            theirs = run_torchray(part, networks)
        print(f"round {number}: saliency {ours:.1f} s, TorchRay {theirs:.1f} s, ratio {theirs / ours:.2f}", flush=True)
        measured.append(Round(ours, theirs, spent))
    return measured[1:]


def take(dataset: Dataset, start: int, count: int) -> ImageSet:
    """The photos of a round. ``ValueError`` for a user's own data set."""
    if not isinstance(dataset, ImageSet):
        raise ValueError(f"dataset={dataset.name!r} cannot be divided; expected one of the table.")
    part = slice(start, start + count)
    return replace(dataset, annotations=dataset.annotations[part], places=dataset.places[part])


def run_ours(setup: Setup) -> float:
    """The seconds of our benchmark."""
    begin = time.perf_counter()
    run_setup(setup)
    return time.perf_counter() - begin


def run_torchray(setup: Setup, networks: Networks) -> float:
    """The seconds of TorchRay's, image by image, as its own script does it."""
    annotations = setup.dataset.annotations
    cases = {(one.name, label, method) for one in annotations for label in labels_of(one) for method in TORCHRAY}
    begin = time.perf_counter()
    for _ in judge(setup, networks, {case for case in cases if setup.outputs[case[1]]}):
        pass
    return time.perf_counter() - begin


def print_table(measured: list[Round], images: int) -> None:
    """Print the median round and where our time goes."""
    ours = statistics.median(images / one.ours for one in measured)
    theirs = statistics.median(images / one.theirs for one in measured)
    ratios = sorted(one.theirs / one.ours for one in measured)
    print(f"\nimages/s: saliency {ours:.2f}, TorchRay {theirs:.2f}")
    print(
        f"ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})\n\n| where our time goes | share |"
    )
    print("| --- | ---: |")
    total = sum(one.ours for one in measured)
    for method in TORCHRAY:
        print(f"| {method} | {sum(one.spent[method] for one in measured) / total:.0%} |")
    rest = 1 - sum(sum(one.spent.values()) for one in measured) / total
    print(f"| reading, writing, planning | {rest:.0%} |")


if __name__ == "__main__":
    sys.exit(main())
