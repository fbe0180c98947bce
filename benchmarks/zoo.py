"""Every method, at the layer that is found for it, on the networks of installed libraries with random weights.

    python -m benchmarks.zoo --library timm --network 'swin*' --method gradient --method grad_cam --out zoo.jsonl

A line a network is appended to ``--out``; networks that are there already are not run again. The table shows which
layer was found and its grid, whether a pattern planted in a corner of the input shows in that corner of the grid, and
which methods gave values that are not finite, or another map for an image in a batch of two than alone. ``--document``
writes a page of it, with the time of every method.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from statistics import median
from time import perf_counter, process_time

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.nn.modules.batchnorm import _BatchNorm

from benchmarks.zoo_methods import EQUAL, activations, difference, examine_method
from benchmarks.zoo_networks import LIBRARIES, Network, networks
from benchmarks.zoo_rows import Row, page, read_rows, report
from saliency import METHODS, find_layer
from saliency.cli.choosing import choose_names
from saliency.engine.outputs import main_output


def examine(library: str, name: str, network: Network, methods: Sequence[str]) -> Row:
    """Build a network and explain two inputs by every method."""
    start = perf_counter()
    row = Row(library, name, shape=network.shape)
    try:
        torch.manual_seed(0)
        model = network.build().eval()
        input = torch.randn(2, *network.shape) * 0.5
        _prepare(model, input)
        layer = find_layer(model, input[:1], target=network.target)
        blank, low, high = (activations(model, x, network.target) for x in (input[:1], *plant(input[:1])))
        corner = is_in_corner(((low - blank).norm(dim=1) - (high - blank).norm(dim=1))[0])
        row = row._replace(layer=layer, grid=tuple(blank.shape[2:]), corner=corner, forward=_forward(model, input))
        if off := _of_batches(model, input):
            row = row._replace(problems=(off,))
        else:
            row = _explained(row, model, input, network.target, methods)
    except Exception as error:  # whatever it is, the sweep goes on and the table says so
        row = row._replace(error=f"{type(error).__name__}: {error}".split("\n")[0])
    return row._replace(seconds=round(perf_counter() - start, 1))


def _explained(row: Row, model: nn.Module, input: Tensor, target: object, methods: Sequence[str]) -> Row:
    found = {method: examine_method(method, model, input, target, row.grid) for method in methods}
    return row._replace(
        problems=tuple(each.problem for each in found.values() if each.problem),
        times={name: each.seconds for name, each in found.items() if each.seconds},
        reasons={name: each.reason for name, each in found.items() if each.reason},
    )


def _forward(model: nn.Module, input: Tensor) -> float:
    """The seconds of processor time of a forward pass: the median of three."""

    def seconds() -> float:
        start = process_time()
        with torch.inference_mode():
            model(input)
        return process_time() - start

    return round(median(seconds() for _ in range(3)), 4)


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


def _of_batches(model: nn.Module, input: Tensor) -> str:
    """Whether the model's own output for an image changes in a batch."""
    with torch.no_grad():
        both, *each = (main_output(model(x)) for x in (input, *input.split(1)))
    off = difference(both, torch.cat(each))
    return f"the model's own output of a batch differs from that of its images by {off:.1%}" if off > EQUAL else ""


def _networks(asked: argparse.Namespace) -> Iterator[tuple[str, str, Network]]:
    """The networks that were asked for, of the libraries that are there."""
    only = {name: value for name in ("every_size", "side") if (value := getattr(asked, name))}
    for library in asked.library or LIBRARIES:
        try:
            chosen = list(networks(library, **(only if library == "torchvision" else {})))
        except ModuleNotFoundError:
            print(f"{library} is not installed: left out", file=sys.stderr)
            continue
        for name, network in chosen:
            if any(fnmatch(name, pattern) for pattern in asked.network or ["*"]):
                yield library, name, network


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", action="append", choices=list(LIBRARIES), help="default: all that are installed")
    parser.add_argument("--network", action="append", help="a pattern of names, as of files; default: all")
    parser.add_argument("--every-size", action="store_true", help="of torchvision: every classifier, and nothing else")
    parser.add_argument("--side", type=int, help="of torchvision: classifiers alone, for images of so many pixels")
    parser.add_argument("--method", action="append", help="a method or 'all'; default: those of few passes")
    parser.add_argument("--out", type=Path, default=Path("zoo.jsonl"), help="rows, one a line")
    parser.add_argument("--document", type=Path, help="write a page of the rows into this file")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sweep; the exit code says whether every network could be explained."""
    asked = parse(arguments)
    torch.set_num_threads(asked.threads)
    # A point that no network was asked for has no layer.
    methods, rows = [name for name in choose_names(asked.method) if name in METHODS], read_rows(asked.out)
    done, chosen = {(row.library, row.network) for row in rows}, list(_networks(asked))
    for number, (library, name, network) in enumerate(chosen, 1):
        if (library, name) not in done:
            rows.append(examine(library, name, network, methods))
            with asked.out.open("a") as file:
                file.write(json.dumps(rows[-1]._asdict()) + "\n")
            words = f"{name}: {rows[-1].layer} {rows[-1].verdict} ({rows[-1].seconds} s)"
            print(f"{number} of {len(chosen)}, {words}", file=sys.stderr)
    print(report(rows))
    if asked.document is not None:
        asked.document.parent.mkdir(parents=True, exist_ok=True)
        asked.document.write_text(page(rows), "utf-8")
    return int(any(row.error for row in rows))


if __name__ == "__main__":
    sys.exit(main())
