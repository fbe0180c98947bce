"""How good are the maps? Every case of a data set, explained by every method, measured by every metric.

    python -m benchmarks.pointing_game --dataset scenes [--method grad_cam ...] [--metric pointing_game ...]
    python -m benchmarks.pointing_game --method rise --option num_masks=500 --option rise.smooth=0.05
    torchrun --nproc-per-node=4 -m benchmarks.pointing_game --dataset voc2007 --root ~/data --arch resnet50_voc

On the CPU a process has one thread: start as many processes as there are cores. Results do not depend on their number;
those of another --threads may differ in their last digits.

A case is an image and a class in it. Every result is on disk at once; a run that ended goes on where it was. The exit
code is 0, 1 where a case failed or nothing more could be written, 2 for wrong usage, 130 after Ctrl-C.
"""

import ctypes
import os
import signal
import sys
from argparse import Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.distributed import DistError
from torch.nn import Module

from benchmarks.choices import choose_metrics, choose_names, make_methods
from saliency import METHODS
from saliency.cli.options import choose_device
from saliency.cli.parsing import Parser, positive
from saliency.engine.outputs import main_output
from saliency.engine.search import find_layer
from saliency.engine.state import evaluating, model_dtype
from saliency.evaluation.baselines import BASELINES
from saliency.evaluation.cases import Dataset, left_out, outputs_of, read_class_map
from saliency.evaluation.datasets import DATASETS, load_dataset
from saliency.evaluation.explainers import FATAL, Methods
from saliency.evaluation.metrics import METRICS
from saliency.evaluation.printing import one_line, printable
from saliency.evaluation.report.terminal import Outcome
from saliency.evaluation.running.ranks import RankError
from saliency.evaluation.running.runner import run
from saliency.networks.caffe import CAFFE_ARCHS
from saliency.networks.models import DEFAULT, SCENES, Recipe, load_network, recipe
from saliency.networks.own import import_network

SHOWN = 5  # problems of a data set
ENDING: tuple[type[Exception], ...] = (ValueError, OSError, DistError, *FATAL)
MALLOC = {-1: 2**31 - 1, -3: 2**25}  # of glibc: M_TRIM_THRESHOLD, and M_MMAP_THRESHOLD at its largest


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark, print the table, and return the exit code."""
    rank = int(os.environ.get("RANK", "0"))
    try:
        outcome = benchmark(build_parser().parse_args(argv), rank)
    except ENDING as error:
        if rank == 0 or not isinstance(error, ValueError) or isinstance(error, RankError):
            lost = "the process that kept the ranks together is gone: " if isinstance(error, DistError) else ""
            print(f"pointing_game: error: {lost}{one_line(error)}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    except KeyboardInterrupt:
        return 130
    if rank == 0:
        report(outcome)
    return 130 if outcome.interrupted else 1 if outcome.failed else 0


def keep_freed_memory() -> None:
    """Have the C library keep what a batch frees for the next one: to get it anew from the system takes long."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for parameter, value in MALLOC.items():
            mallopt(parameter, value)


def report(outcome: Outcome) -> None:
    """Print what was found."""
    for problem in outcome.problems:
        print(f"no row, left out: {printable(problem)}", file=sys.stderr)
    missing = sum(line.missing for line in outcome.lines)
    print(outcome.table)
    constant = {line.method: line.constant for line in outcome.lines if line.constant}
    if constant:
        print(f"\nconstant maps: {', '.join(f'{count} of {name}' for name, count in constant.items())}.")
    if missing:
        print(f"\n{missing} results are missing; the same command goes on.")
    if outcome.failed:
        print(f"\n{outcome.failed} results failed, see 'error' in their rows; --retry-errors tries them again.")
        for error in dict.fromkeys(line.error for line in outcome.lines if line.error):
            print(f"  {printable(error)}")


def build_parser() -> Parser:
    """The arguments."""
    parser = Parser(prog="pointing_game", description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--dataset", choices=sorted(DATASETS), default="scenes")
    add("--root", metavar="DIR", help="where the data set is")
    add("--split", help="another part of the data set than the usual one")
    add("--annotations", metavar="FILE", help="JSON of COCO's form")
    add("--scenes", type=positive, metavar="N", help="number of embedded scenes (200)")
    add("--on-error", choices=["skip", "refuse"], default="skip", help="what to do with broken files and annotations")
    add(
        "--arch", help="'scenes[_vit]', a classifier of torchvision, or one of TorchRay's (scenes; resnet50 for photos)"
    )
    add("--weights", default=DEFAULT, metavar="DEFAULT|FILE", help="the published ones, or the file of a state dict")
    add("--import", dest="imported", metavar="MODULE:BUILD", help="your own network")
    add("--pooled", action="store_true", help="TorchRay's networks: one score for the whole image, not for each place")
    add("--size", type=positive, metavar="N", help="shorter side of the network's input (the network's own)")
    add("--class-map", metavar="FILE", help="JSON: the network's outputs for each class of the data set")
    add(
        "--method",
        action="append",
        metavar="NAME",
        help=f"repeatable; {', '.join(BASELINES)}, 'baselines', 'torchray', 'all' but feature_permutation "
        "(centre and all quick ones)",
    )
    add("--layer", action="append", metavar="[METHOD=]NAME", help="where to look (each method's own)")
    add("--option", action="append", metavar="[METHOD.]NAME=VALUE", help="for the methods that have it; repeatable")
    add("--metric", action="append", metavar="NAME", help=f"repeatable; 'all' or {', '.join(METRICS)}")
    add("--metric-option", action="append", metavar="METRIC.NAME=VALUE", help="repeatable")
    add("--tolerance", type=float, metavar="PIXELS", help="of the pointing game (15)")
    add("--limit", type=positive, metavar="N", help="only the first N cases")
    add("--batch-size", type=positive, metavar="N", default=8, help="most images at once (8)")
    add("--gallery", type=int, metavar="N", default=24, help="pictures of the first N images (24)")
    add("--out", metavar="DIR", help="where the results go, and are gone on with (bench_out/DATASET-ARCH)")
    add("--retry-errors", action="store_true", help="try cases again that failed in an earlier run")
    add("--device", default="auto", metavar="auto|cpu|cuda", help="auto is cuda where there is one, shared by ranks")
    add(
        "--threads",
        type=positive,
        metavar="N",
        help="of a process on the CPU (1: results are then the same for any number of processes)",
    )
    return parser


class Setup(NamedTuple):
    """What the arguments come to. ``options`` are those of :func:`saliency.evaluation.running.runner.run`."""

    dataset: Dataset
    model: Module
    recipe: Recipe
    methods: Methods
    metrics: dict[str, dict[str, Any]]
    out: Path
    outputs: list[tuple[int, ...]]
    options: dict[str, Any]


def benchmark(arguments: Namespace, rank: int) -> Outcome:
    """Load what is asked for, and run."""
    setup = make_setup(arguments)
    if rank == 0:
        tell_of_problems(setup)
    return run_setup(setup)


def make_setup(arguments: Namespace) -> Setup:
    """Load what is asked for, and check the choices."""
    device = own_device(arguments.device)
    keep_freed_memory()
    if arguments.threads or device.type == "cpu":
        # Another number of threads is another order of summation, which a gradient at a ReLU's edge makes visible.
        torch.set_num_threads(arguments.threads or 1)
    metrics = choose_metrics(arguments.metric, arguments.metric_option or (), arguments.tolerance)
    names = choose_names(arguments.method)
    dataset = read_dataset(arguments)
    arch = arguments.imported or arguments.arch or (SCENES if arguments.dataset == "scenes" else "resnet50")
    model, wanted = read_network(arguments, arch)
    class_map = read_class_map(arguments.class_map) if arguments.class_map else None
    outputs = outputs_of(dataset.classes, count_outputs(model, wanted), class_map)
    names = [name for name in names if name in (arguments.method or ()) or suits(name, model, wanted)]
    if not names:
        raise ValueError(f"method={arguments.method!r} has no method for arch={arch!r}; expected another one.")
    asked = arguments.layer or (), arguments.option or ()
    methods = make_methods(
        names, *asked, arch, default_layer(model, wanted), "torchray" in (arguments.method or ()), dataset
    )
    out = Path(arguments.out or f"bench_out/{arguments.dataset}-{arch.replace(':', '.')}")
    options = {name: getattr(arguments, name) for name in ("limit", "batch_size", "gallery", "retry_errors")}
    options["network"] = {"arch": arch, "weights": None if arguments.imported else str(arguments.weights)}
    model = model.to(device)
    if device.type == "cpu":  # where convolutions are faster with channels last
        model = model.to(memory_format=torch.channels_last)
    return Setup(dataset, model, wanted, methods, metrics, out, outputs, options)


def run_setup(setup: Setup) -> Outcome:
    """Run what was set up."""
    outputs, options = setup.outputs, setup.options
    return run(*setup[:6], outputs=outputs, **options)


def read_dataset(arguments: Namespace) -> Dataset:
    """The data set."""
    if arguments.scenes and arguments.dataset != "scenes":
        raise ValueError(f"scenes={arguments.scenes!r} is for the data set of scenes only; --limit is accepted.")
    options = {"split": arguments.split, "annotations": arguments.annotations}
    if arguments.dataset == "scenes":
        options["scenes"] = arguments.scenes or 200
    return load_dataset(arguments.dataset, arguments.root, on_error=arguments.on_error, **options)


def tell_of_problems(setup: Setup) -> None:
    """Print how much was left out and why; the run writes all of it into a file."""
    problems = left_out(setup.dataset, setup.outputs)
    if problems:
        file = setup.out / "left-out.txt"
        shown = "".join(f"  {problem}\n" for problem in problems[:SHOWN])
        print(f"left out ({len(problems)}, all in {file}):\n{shown}", end="", file=sys.stderr)


def read_network(arguments: Namespace, arch: str) -> tuple[Module, Recipe]:
    """The network, on the CPU, and what it expects."""
    if arguments.imported:
        if arguments.arch or arguments.weights != DEFAULT:
            raise ValueError(f"import={arch!r} goes without --arch and --weights; a function that loads is accepted.")
        model, wanted = import_network(arch)
        return model, wanted if arguments.size is None else wanted._replace(size=arguments.size)
    options = {} if arch not in CAFFE_ARCHS else {"pooled": arguments.pooled}
    return load_network(arch, arguments.weights, **options), recipe(arch, arguments.size)


def suits(name: str, model: Module, wanted: Recipe) -> bool:
    """Does a network have what a method explains? Of a group, one that it lacks is left out, in a line on stderr."""
    if name not in METHODS or not METHODS[name].is_for_some:
        return True
    try:
        METHODS[name].function(model, make_noise(model, wanted), 0)
    except ValueError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"{name} is left out: {one_line(error)}", file=sys.stderr)
        return False
    return True


def count_outputs(model: Module, wanted: Recipe) -> int:
    """The number of classes that the network tells apart. ``ValueError`` where it does not score classes."""
    with evaluating(model):
        scores = main_output(model(make_noise(model, wanted)))
    if not isinstance(scores, torch.Tensor) or scores.ndim < 2:
        shown = tuple(scores.shape) if isinstance(scores, torch.Tensor) else type(scores).__name__
        raise ValueError(f"output={shown!r} of the network holds no classes; (N, classes) or more is accepted.")
    return scores.shape[1]


def make_noise(model: Module, wanted: Recipe) -> torch.Tensor:
    """An input that the network takes."""
    noise = torch.randn(1, 3, wanted.size, wanted.size, generator=torch.Generator().manual_seed(0))
    return noise.to(model_dtype(model, noise))


def default_layer(model: Module, wanted: Recipe) -> str | None:
    """Where the CAMs look: what the network's recipe says, or else its last layer with spatial output, if any."""
    if wanted.layer is not None:
        return wanted.layer
    try:
        return find_layer(model, make_noise(model, wanted))
    except ValueError:
        return None


def own_device(name: str) -> torch.device:
    """The device of this process: ranks on one machine take its GPUs in turn."""
    device = choose_device(name)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        torch.cuda.set_device(device)
    return device


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what torchrun and schedulers send is a Ctrl-C
    sys.exit(main())
