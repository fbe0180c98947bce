"""``saliency benchmark``: every case of a data set, explained by every method, measured by every metric."""

import signal
import sys
import threading
from argparse import Namespace, RawDescriptionHelpFormatter
from collections.abc import Iterator
from contextlib import contextmanager

from saliency.cli.ending import own_rank
from saliency.cli.parsing import Parser, add_network_files, positive, say
from saliency.cli.preparing import Setup, make_setup, run_setup
from saliency.cli.settings import NUMBER_OF_SCENES
from saliency.evaluation.baselines import BASELINES
from saliency.evaluation.cases import left_out
from saliency.evaluation.datasets import DATASETS
from saliency.evaluation.metrics import METRICS
from saliency.evaluation.printing import printable
from saliency.evaluation.report.terminal import Outcome
from saliency.evaluation.running.runner import BATCH_SIZE, GALLERY

SHOWN = 5  # problems of a data set
DESCRIPTION = """How good are the maps? Every case of a data set, explained by every method, measured by every metric.

    saliency benchmark --dataset scenes [--method grad_cam ...] [--metric pointing_game ...]
    saliency benchmark --method rise --option num_masks=500 --option rise.smooth=0.05
    saliency benchmark --method my_module:my_method --method 'smooth_grad(gradient)'
    torchrun --nproc-per-node=4 -m saliency benchmark --dataset voc2007 --root ~/data --arch resnet50_voc

On the CPU a process has one thread: start as many processes as there are cores. Results do not depend on their number;
with another --threads they may differ in their last digits.

A case is an image and a class in it. Every result is on disk at once; the same command resumes an interrupted run.
The exit code is 0, 1 if a case failed or nothing more could be written, 2 for wrong usage, 130 after Ctrl-C.
"""


def add_benchmark(parser: Parser) -> None:
    """Add the arguments of ``saliency benchmark``."""
    parser.description, parser.formatter_class = DESCRIPTION, RawDescriptionHelpFormatter
    _add_data_and_network(parser)
    _add_methods(parser)
    add = parser.add_argument
    add("--metric", action="append", metavar="NAME", help=f"repeatable; 'all' or {', '.join(METRICS)}")
    add("--metric-option", action="append", metavar="METRIC.NAME=VALUE", help="repeatable")
    tolerance = METRICS["pointing_game"].defaults["tolerance"]
    add("--tolerance", type=float, metavar="PIXELS", help=f"of the pointing game ({tolerance})")
    add("--limit", type=positive, metavar="N", help="only the first N cases")
    add("--batch-size", type=positive, metavar="N", default=BATCH_SIZE, help=f"images at once, at most ({BATCH_SIZE})")
    add("--gallery", type=int, metavar="N", default=GALLERY, help=f"pictures of the first N images ({GALLERY})")
    add("--out", metavar="DIR", help="where the results go, and a run is resumed (bench_out/DATASET-ARCH)")
    add("--retry-errors", action="store_true", help="retry the cases that failed in an earlier run")
    add("--device", default="auto", metavar="auto|cpu|cuda", help="auto is cuda where available, shared by ranks")
    add(
        "--threads",
        type=positive,
        metavar="N",
        help="per process on the CPU (1: results are then the same for any number of processes)",
    )
    parser.set_defaults(run=benchmark)


def _add_data_and_network(parser: Parser) -> None:
    add = parser.add_argument
    add("--dataset", default="scenes", metavar="NAME", help=f"{', '.join(DATASETS)} (scenes)")
    add("--root", metavar="DIR", help="where the data set is")
    add("--split", help="part of the data set, if not the usual one")
    add("--annotations", metavar="FILE", help="a JSON file in COCO's format")
    add("--scenes", type=positive, metavar="N", help=f"number of embedded scenes ({NUMBER_OF_SCENES})")
    add("--on-error", choices=["skip", "refuse"], default="skip", help="what to do with broken files and annotations")
    add(
        "--arch", help="'scenes[_vit]', a classifier of torchvision, or one of TorchRay's (scenes; resnet50 for photos)"
    )
    add_network_files(add)
    add("--pooled", action="store_true", help="TorchRay's networks: one score for the whole image, not for each place")
    add("--size", type=positive, metavar="N", help="shorter side of the network's input (the network's own)")
    add("--class-map", metavar="FILE", help="JSON: the network's outputs for each class of the data set")


def _add_methods(parser: Parser) -> None:
    add = parser.add_argument
    add(
        "--method",
        action="append",
        metavar="NAME",
        help=f"repeatable; {', '.join(BASELINES)}, 'baselines', 'torchray', 'attention', 'all' but "
        "feature_permutation, your own my_module:function, or wrapped as 'smooth_grad(gradient)' "
        "(centre and all quick ones)",
    )
    add(
        "--method-version",
        action="append",
        metavar="METHOD=TEXT",
        help="version of your own method: later runs reuse results with the same text; repeatable",
    )
    add("--layer", action="append", metavar="[METHOD=]NAME", help="the layer to explain (each method's own)")
    add("--option", action="append", metavar="[METHOD.]NAME=VALUE", help="for the methods that have it; repeatable")


def benchmark(arguments: Namespace) -> int:
    """Run the benchmark, print the table, and return the exit code."""
    with terminated_as_interrupted():
        setup = make_setup(arguments)
        if own_rank() == 0:
            tell_of_problems(setup)
        outcome = run_setup(setup)
    if own_rank() == 0:
        tell(outcome)
    return 130 if outcome.interrupted else 1 if outcome.failed else 0


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM, which torchrun and schedulers send, is a Ctrl-C in the block; only the main thread is told of either."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def tell_of_problems(setup: Setup) -> None:
    """Say how much was left out and why; the run writes all of it into a file."""
    problems = left_out(setup.dataset, setup.outputs)
    if problems:
        file = setup.out / "left-out.txt"
        shown = "".join(f"  {problem}\n" for problem in problems[:SHOWN])
        sys.stderr.write(f"left out ({len(problems)}, all in {file}):\n{shown}")


def tell(outcome: Outcome) -> None:
    """Print the results."""
    for problem in outcome.problems:
        sys.stderr.write(f"no row, left out: {printable(problem)}\n")
    say(str(outcome))
    if outcome.failed:
        say("--retry-errors tries the failed cases again")
