"""Every method, at the layer that is found for it, on the networks of installed libraries with random weights.

    python -m benchmarks.zoo --library timm --network 'swin*' --method gradient --method grad_cam --out zoo.jsonl

A line a network is appended to ``--out``; networks that are there already are not run again. The table shows which
layer was found and its grid, whether what is planted in a corner of the input is found in that corner of the grid, and
which methods gave values that are not finite, or another map for an image in a batch of two than alone.
"""

import argparse
import copy
import json
import sys
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.nn.modules.batchnorm import _BatchNorm

from benchmarks.choices import choose_names
from benchmarks.zoo_networks import LIBRARIES, Network, networks
from saliency import METHODS, find_layer
from saliency import saliency as driver
from saliency.cli.listing import table
from saliency.engine.outputs import main_output

FEW: Mapping[str, object] = {"n_steps": 3, "n_samples": 2, "num_samples": 2, "num_masks": 20, "max_iter": 3}
EQUAL = 1e-3  # of the map's largest value: float32, and other kernels for other batches

_BATCH_NORM = (
    "PyTorch's backward pass of batch norm in evaluation mode is wrong for one image of tokens viewed as a map "
    "(see README, Limits): a batch of two is right"
)
# Why a network has a remark that says nothing about its map.
ODDITIES = {
    "CvtForImageClassification": _BATCH_NORM,
    "ASTForAudioClassification": "its input is (time, frequency), its grid (frequency, time): the corners are swapped",
    "EfficientNetForImageClassification": "untrained, nothing of the input reaches its last layer",
    "MobileViTForImageClassification": "untrained, its attention leaves nearly the same values everywhere",
    "efficientvit_b0": "untrained, its linear attention changes all positions alike",
    "gcvit_xxtiny": "its global queries are handed to other images of a batch: its own output depends on the batch",
    "LevitForImageClassification": _BATCH_NORM,
    "levit_128s": _BATCH_NORM,
    "xcit_nano_12_p16_224": _BATCH_NORM,
}


class Row(NamedTuple):
    """What was seen of one network; ``error`` where it could not be explained at all."""

    library: str
    network: str
    layer: str = ""
    grid: tuple[int, ...] = ()
    corner: bool = False
    problems: tuple[str, ...] = ()
    error: str = ""
    seconds: float = 0.0

    @property
    def verdict(self) -> str:
        """Nothing, or what is wrong, in words."""
        return self.error or "; ".join(([] if self.corner else ["planted corner not found"]) + list(self.problems))


def examine(library: str, name: str, network: Network, methods: Sequence[str]) -> Row:
    """Build a network and explain two inputs by every method."""
    start = perf_counter()
    try:
        torch.manual_seed(0)
        model = network.build().eval()
        input = torch.randn(2, *network.shape) * 0.5
        _prepare(model, input)
        layer = find_layer(model, input[:1], target=network.target)
        blank, low, high = (_activation(model, x, network) for x in (input[:1], *plant(input[:1])))
        found = is_in_corner(((low - blank).norm(dim=1) - (high - blank).norm(dim=1))[0])
        problems = _of_batches(model, input) or [
            problem for method in methods for problem in _problems(method, model, input, network.target)
        ]
        row = Row(library, name, layer, tuple(blank.shape[2:]), found, tuple(problems))
    except Exception as error:  # whatever it is, the sweep goes on and the table says so
        row = Row(library, name, error=f"{type(error).__name__}: {error}".split("\n")[0])
    return row._replace(seconds=round(perf_counter() - start, 1))


def _prepare(model: nn.Module, input: Tensor) -> None:
    """Draw what starts at zero, and give batch norms the statistics of the input: else nothing comes through."""
    for parameter in model.parameters():
        if parameter.is_floating_point() and not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.track_running_stats:
            module.reset_running_stats()
            module.momentum = None  # the mean over all batches: one
            module.train()
    with torch.no_grad():
        model(input)
    model.eval()


def plant(input: Tensor) -> tuple[Tensor, Tensor]:
    """The input with other noise in a quarter of its rows and columns: the last and first, and the first and last.

    >>> [planted[0, 0].abs().gt(0).nonzero().tolist() for planted in plant(torch.zeros(1, 1, 4, 4))]
    [[[3, 0]], [[0, 3]]]
    """
    height, width = (side // 4 for side in input.shape[-2:])
    low, high = input.clone(), input.clone()
    noise = 0.5 * torch.randn(input[..., :height, :width].shape, generator=torch.Generator().manual_seed(1))
    low[..., -height:, :width] = noise
    high[..., :height, -width:] = noise
    return low, high


def is_in_corner(change: Tensor) -> bool:
    """Is a grid largest in its last rows and first columns, and smallest opposite? Frames in front are added up.

    >>> is_in_corner(torch.tensor([[0.0, -1.0], [1.0, 0.0]])), is_in_corner(torch.tensor([[0.0, 1.0], [-1.0, 0.0]]))
    (True, False)
    """
    grid = change.flatten(0, -3).sum(0) if change.ndim > 2 else change
    quarters = interpolate(grid[None, None], (2, 2), mode="area").flatten()
    return int(quarters.argmax()) == 2 and int(quarters.argmin()) == 1


def _differ(both: Tensor, alone: Tensor) -> float:
    return float((both - alone).abs().max() / alone.abs().max().clamp(min=1e-30))


def _of_batches(model: nn.Module, input: Tensor) -> list[str]:
    """Whether the model itself makes something else of an image in a batch."""
    with torch.no_grad():
        both, *each = (main_output(model(x)) for x in (input, *input.split(1)))
    off = _differ(both, torch.cat(each))
    return [f"the model's own output of a batch differs from that of its images by {off:.1%}"] if off > EQUAL else []


def _activation(model: nn.Module, input: Tensor, network: Network) -> Tensor:
    """The activation (N, C, ...) at the layer that is found, on the grid that is read."""
    options: dict[str, Any] = {"gradient_to_saliency": torch.clone, "get_backward_gradient": None}
    maps: Tensor = driver(model, input, network.target, None, **options)
    return maps


def _problems(method: str, model: nn.Module, input: Tensor, target: object) -> list[str]:
    options = {name: value for name, value in FEW.items() if name in METHODS[method].options}
    if "n_steps" in options or "n_samples" in options:
        options["internal_batch_size"] = 4
    explain = METHODS[method].function

    def maps(model: nn.Module, input: Tensor) -> tuple[Tensor, Tensor]:
        return explain(model, input, target, **options), torch.cat(
            [explain(model, x[None], target, **options) for x in input]
        )

    try:
        both, alone = maps(model, input)
        if both.isfinite().all() and _differ(both, alone) > EQUAL:  # by more than rounding?
            both, alone = maps(copy.deepcopy(model).double(), input.double())
    except Exception as error:
        refused = METHODS[method].is_for_some and isinstance(error, ValueError)
        return [] if refused else [f"{method}: {type(error).__name__}: {error}".split("\n")[0]]
    if not both.isfinite().all():
        return [f"{method}: not finite"]
    off = _differ(both, alone)
    return [f"{method}: a batch differs from its images by {off:.1%}"] if off > EQUAL else []


def read_rows(path: Path) -> list[Row]:
    """The rows of an earlier run."""
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [Row(**json.loads(line)) for line in lines]
    return [row._replace(grid=tuple(row.grid), problems=tuple(row.problems)) for row in rows]


def report(rows: Sequence[Row]) -> str:
    """The table, and how many networks it holds."""
    header = ("library", "network", "layer", "grid", "")
    lines = [(r.library, r.network, r.layer, " x ".join(map(str, r.grid)), r.verdict or "ok") for r in rows]
    good = sum(not row.verdict for row in rows)
    known = [f"{row.network}: {ODDITIES[row.network]}" for row in rows if row.verdict and row.network in ODDITIES]
    return "\n".join([table([header, *lines]), f"{good} of {len(rows)} networks without a remark", *known])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sweep; the exit code says whether every network could be explained."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", action="append", choices=list(LIBRARIES), help="default: all that are installed")
    parser.add_argument("--network", action="append", help="a pattern of names, as of files; default: all")
    parser.add_argument("--method", action="append", help="a method or 'all'; default: those of few passes")
    parser.add_argument("--out", type=Path, default=Path("zoo.jsonl"), help="rows, one a line")
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args(arguments)
    torch.set_num_threads(asked.threads)
    # A point that no network was asked for has no layer.
    methods, rows = [name for name in choose_names(asked.method) if name in METHODS], read_rows(asked.out)
    done = {(row.library, row.network) for row in rows}
    for library in asked.library or LIBRARIES:
        try:
            chosen = list(networks(library))
        except ModuleNotFoundError:
            print(f"{library} is not installed: left out", file=sys.stderr)
            continue
        for name, network in chosen:
            if (library, name) in done or not any(fnmatch(name, pattern) for pattern in asked.network or ["*"]):
                continue
            rows.append(examine(library, name, network, methods))
            with asked.out.open("a") as file:
                file.write(json.dumps(rows[-1]._asdict()) + "\n")
            print(f"{name}: {rows[-1].layer} {rows[-1].verdict} ({rows[-1].seconds} s)", file=sys.stderr)
    print(report(rows))
    return int(any(row.error for row in rows))


if __name__ == "__main__":
    sys.exit(main())
