"""The findings about the networks of the sweep: rows, a table of them, and a page with the time of every method."""

import json
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import torch

from saliency import METHODS
from saliency.cli.listing import table
from saliency.evaluation.report.markdown import table as markdown_table

_BATCH_NORM = (
    "PyTorch's backward pass of batch norm in evaluation mode is wrong for one image of tokens viewed as a map "
    "(see docs/limits.md): a batch of two is right"
)
_SMALL = "at 128 pixels, what an untrained cell of its grid sees is nearly the whole image; found at 224"
# Why a network has a remark that says nothing about its map.
ODDITIES = {
    "CvtForImageClassification": _BATCH_NORM,
    "ASTForAudioClassification": "its input is (time, frequency), its grid (frequency, time): the corners are swapped",
    "DPTForSemanticSegmentation": "its attention is among tokens, whose grid is coarser than that of its head",
    "EfficientNetForImageClassification": "untrained, nothing of the input reaches its last layer",
    "MobileViTForImageClassification": "untrained, its attention leaves nearly the same values everywhere",
    "efficientformer_l1": _BATCH_NORM,
    "efficientvit_b0": "untrained, its linear attention changes all positions alike",
    "gcvit_xxtiny": "its global queries are handed to other images of a batch: its own output depends on the batch",
    "LevitForImageClassification": _BATCH_NORM,
    "levit_128s": _BATCH_NORM,
    "mnasnet0_5": _SMALL,
    "mobilenet_v3_small": _SMALL,
    "rexnet_100": "untrained, its squeeze and excitation changes all positions alike",
    "sequencer2d_s": "LRP has no rule for an LSTM, and says so",
    "xcit_nano_12_p16_224": _BATCH_NORM,
}
_COLUMNS = 8  # networks beside each other on the page


class Row(NamedTuple):
    """The findings about one network; ``error`` where it could not be explained at all.

    ``forward`` and ``times`` are seconds of processor time, of the network and of the methods, for the same two inputs;
    ``reasons`` say of a method why the network has nothing for it to explain.
    """

    library: str
    network: str
    layer: str = ""
    grid: tuple[int, ...] = ()
    corner: bool = False
    problems: tuple[str, ...] = ()
    error: str = ""
    seconds: float = 0.0
    shape: tuple[int, ...] = ()
    forward: float = 0.0
    times: Mapping[str, float] = {}
    reasons: Mapping[str, str] = {}

    @property
    def verdict(self) -> str:
        """The problems in words, or an empty text."""
        return self.error or "; ".join(([] if self.corner else ["planted corner not found"]) + list(self.problems))


def read_rows(path: Path) -> list[Row]:
    """The rows of an earlier run."""
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [Row(**json.loads(line)) for line in lines]
    return [row._replace(grid=tuple(row.grid), problems=tuple(row.problems), shape=tuple(row.shape)) for row in rows]


def report(rows: Sequence[Row]) -> str:
    """The table, and how many networks it holds."""
    header = ("library", "network", "layer", "grid", "")
    lines = [(r.library, r.network, r.layer, _sides(r.grid), r.verdict or "ok") for r in rows]
    good = sum(not row.verdict for row in rows)
    return "\n".join([table([header, *lines]), f"{good} of {len(rows)} networks without a remark", *_known(rows)])


def _known(rows: Iterable[Row]) -> list[str]:
    return [f"{row.network}: {ODDITIES[row.network]}" for row in rows if row.verdict and row.network in ODDITIES]


def _sides(sides: Iterable[int]) -> str:
    return " x ".join(map(str, sides))


def page(rows: Sequence[Row]) -> str:
    """A page in Markdown: the layer that is found in each network, and the time of every method, or why it has none."""
    rows, notes = sorted(rows), dict[str, int]()
    methods = [name for name in METHODS if any(name in {**row.times, **row.reasons} for row in rows)]
    times = []
    for some in (rows[start : start + _COLUMNS] for start in range(0, len(rows), _COLUMNS)):
        lines = [[name, *(_cell(row, name, notes) for row in some)] for name in methods]
        times.append(markdown_table(["method", *(row.network for row in some)], lines))
    header = ["network", "image", "layer", "grid", "ms a forward pass", ""]
    layers = [
        [row.network, _sides(row.shape), f"`{row.layer}`", _sides(row.grid), f"{500 * row.forward:.0f}", row.verdict]
        for row in rows
    ]
    return _PAGE.format(
        run=_run(rows),
        layers=markdown_table(header, layers),
        known="\n".join(f"- {line}" for line in _known(rows)),
        times="\n\n".join(times),
        notes="\n".join(f"({number}) {note}" + "  " for note, number in notes.items()),
    )


_PAGE = """\
# Architectures

{run}

## Layers

Where the CAMs look if no layer is named, and its grid. Without a remark, what is planted in a corner of the image is
found in that corner of the grid, and every method gave finite maps of the right shape; those of few passes also the
same for an image in a batch as alone.

{layers}

{known}

## Times

In forward passes of the same two images, processor time of one call: a rough figure. Methods of many passes had few:
three steps of a path, two samples of noise, one sample of SS-CAM and IS-CAM, twenty masks of RISE, three iterations of
extremal perturbations, 4 x 4 cells of the image for ablation, permutation and occlusion; Score-CAM, SS-CAM and IS-CAM,
which take a pass a channel, looked at the layer of the fewest. Under a number in brackets, below, stands why a network
has nothing for a method to explain.

{times}

{notes}
"""


def _run(rows: Sequence[Row]) -> str:
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", *sorted({row.library for row in rows})))
    today = f"{datetime.now(timezone.utc):%d %B %Y}"
    machine = f"{platform.machine()} with {torch.backends.cpu.get_cpu_capability()}"
    return (
        f"Written by `python -m benchmarks.zoo --document` (`make sweep` runs all sizes) on {today}: {len(rows)} "
        f"networks with random weights and every method, {libraries}; {torch.get_num_threads()} thread of a machine "
        f"with processors {machine}, busy with other things too."
    )


def _cell(row: Row, method: str, notes: dict[str, int]) -> str:
    if method in row.reasons:
        reason = re.sub(r"^model=\w+ ", "The network ", row.reasons[method].partition("; expected")[0])
        return f"({notes.setdefault(reason, len(notes) + 1)})"
    return f"{row.times[method] / row.forward:.1f}" if row.times.get(method) else "failed"
