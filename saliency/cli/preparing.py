"""From the arguments of ``saliency benchmark`` to its data set, network, methods and metrics, all checked."""

import ctypes
import os
import sys
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, TypedDict

import torch
from torch.nn import Module

from saliency.cli.choosing import choose_metrics, choose_names, make_methods
from saliency.cli.ending import own_rank
from saliency.cli.options import choose_device, import_modules
from saliency.cli.settings import NUMBER_OF_SCENES
from saliency.cli.trying import try_methods, try_metrics
from saliency.engine.outputs import main_output
from saliency.engine.search import find_layer
from saliency.engine.state import evaluating, model_dtype
from saliency.evaluation.cases import Dataset, outputs_of, read_class_map
from saliency.evaluation.datasets import load_dataset
from saliency.evaluation.explainers import Methods, Options
from saliency.evaluation.printing import one_line
from saliency.evaluation.report.terminal import Outcome
from saliency.evaluation.running.runner import run
from saliency.methods import METHODS
from saliency.networks.caffe import CAFFE_ARCHS
from saliency.networks.models import DEFAULT, SCENES, load_network, preprocessing
from saliency.networks.own import import_network
from saliency.networks.preprocessing import Preprocessing

MALLOC = {-1: 2**31 - 1, -3: 2**25}  # of glibc: M_TRIM_THRESHOLD, and M_MMAP_THRESHOLD at its largest


class RunOptions(TypedDict):
    """Options of :func:`saliency.evaluation.running.runner.run`."""

    network: dict[str, str | None]
    limit: int | None
    batch_size: int
    gallery: int
    retry_errors: bool


class Setup(NamedTuple):
    """What is run."""

    dataset: Dataset
    model: Module
    preprocessing: Preprocessing
    methods: Methods
    metrics: Mapping[str, Options]
    out: Path
    outputs: list[tuple[int, ...]]
    options: RunOptions


def make_setup(arguments: Namespace) -> Setup:
    """Load the data set and the network, and check the choices."""
    own_network = import_modules(arguments.imported or ())
    device = own_device(arguments.device)
    keep_freed_memory()
    if arguments.threads or device.type == "cpu":
        # Another number of threads is another order of summation, which a gradient at a ReLU's edge makes visible.
        torch.set_num_threads(arguments.threads or 1)
    metrics = choose_metrics(arguments.metric, arguments.metric_option or (), arguments.tolerance)
    names = choose_names(arguments.method)
    dataset = read_dataset(arguments)
    arch = own_network or arguments.arch or (SCENES if arguments.dataset == "scenes" else "resnet50")
    model, wanted = read_network(arguments, own_network, arch)
    class_map = read_class_map(arguments.class_map) if arguments.class_map else None
    outputs = outputs_of(dataset.classes, count_outputs(model, wanted), class_map)
    methods = choose_suited(arguments, names, arch, dataset, model, wanted)
    noise = make_noise(model, wanted)
    try_methods(methods, model, noise)
    try_metrics(metrics, model, noise)
    out = Path(arguments.out or f"bench_out/{arguments.dataset}-{arch.replace(':', '.')}")
    options: RunOptions = {
        "network": {"arch": arch, "weights": None if own_network else str(arguments.weights)},
        "limit": arguments.limit,
        "batch_size": arguments.batch_size,
        "gallery": arguments.gallery,
        "retry_errors": arguments.retry_errors,
    }
    model = model.to(device)
    if device.type == "cpu":  # where convolutions are faster with channels last
        model = model.to(memory_format=torch.channels_last)
    return Setup(dataset, model, wanted, methods, metrics, out, outputs, options)


def run_setup(setup: Setup) -> Outcome:
    """Run what was set up."""
    what = setup.dataset, setup.model, setup.preprocessing, setup.methods, setup.metrics
    return run(*what, setup.out, outputs=setup.outputs, **setup.options)


def keep_freed_memory() -> None:
    """Have the C library keep what a batch frees for the next one: requesting it from the system again is slow."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for parameter, value in MALLOC.items():
            mallopt(parameter, value)


def read_dataset(arguments: Namespace) -> Dataset:
    """The data set."""
    if arguments.scenes and arguments.dataset != "scenes":
        raise ValueError(f"scenes={arguments.scenes!r} is for the data set of scenes only; expected --limit.")
    options = {"split": arguments.split, "annotations": arguments.annotations}
    if arguments.dataset == "scenes":
        options["scenes"] = arguments.scenes or NUMBER_OF_SCENES
    return load_dataset(arguments.dataset, arguments.root, on_error=arguments.on_error, **options)


def read_network(arguments: Namespace, own_network: str | None, arch: str) -> tuple[Module, Preprocessing]:
    """The network, on the CPU, and what it expects."""
    if own_network:
        if arguments.arch or arguments.weights != DEFAULT:
            raise ValueError(f"import={arch!r} goes without --arch and --weights; expected a function that loads.")
        model, wanted = import_network(arch)
        return model, wanted if arguments.size is None else wanted.resized(arguments.size, f"import={arch!r}")
    options = {} if arch not in CAFFE_ARCHS else {"pooled": arguments.pooled}
    return load_network(arch, arguments.weights, **options), preprocessing(arch, arguments.size)


def choose_suited(
    arguments: Namespace, names: list[str], arch: str, dataset: Dataset, model: Module, wanted: Preprocessing
) -> Methods:
    """The methods, without those of a group that cannot explain this network."""
    asked = arguments.method or ()
    names = [name for name in names if name in asked or suits(name, model, wanted)]
    if not names:
        raise ValueError(f"method={asked!r} has no method for arch={arch!r}; expected another one.")
    given = arguments.layer or (), arguments.option or ()
    layer, versions = default_layer(model, wanted), arguments.method_version or ()
    return make_methods(names, *given, arch, layer, "torchray" in asked, dataset, versions)


def suits(name: str, model: Module, wanted: Preprocessing) -> bool:
    """Can a method explain a network? One of a group that cannot is left out, with a line on stderr."""
    if name not in METHODS or not METHODS[name].is_for_some:
        return True
    try:
        METHODS[name].function(model, make_noise(model, wanted), 0)
    except ValueError as error:
        if own_rank() == 0:
            sys.stderr.write(f"{name} is left out: {one_line(error)}\n")
        return False
    return True


def count_outputs(model: Module, wanted: Preprocessing) -> int:
    """The number of classes that the network tells apart. ``ValueError`` where it does not score classes."""
    with evaluating(model):
        scores = main_output(model(make_noise(model, wanted)))
    if not isinstance(scores, torch.Tensor) or scores.ndim < 2:
        shown = tuple(scores.shape) if isinstance(scores, torch.Tensor) else type(scores).__name__
        raise ValueError(f"output={shown!r} of the network does not hold classes; expected (N, classes, ...).")
    return scores.shape[1]


def make_noise(model: Module, wanted: Preprocessing) -> torch.Tensor:
    """An input that the network takes."""
    noise = torch.randn(1, 3, wanted.size, wanted.size, generator=torch.Generator().manual_seed(0))
    return noise.to(model_dtype(model, noise))


def default_layer(model: Module, wanted: Preprocessing) -> str | None:
    """The layer of the CAMs: the preprocessing's, or else the network's last layer with spatial output, if any."""
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
