"""How far maps are from other libraries': both cells of every row of ``docs/migrating.md``, run and compared.

A row is two expressions, and a note that says how they are compared: nothing (the same numbers), "scaled" (theirs is
stretched to [0, 1]), "other draws" or "differs".
"""

import importlib
import re
import warnings
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer

import saliency
from saliency import images
from saliency import torchray as games

PAGE = (Path(__file__).parent.parent / "docs" / "migrating.md").read_text("utf-8")
_ROW = re.compile(r"^\| `(.+)` \| `(.+)` \| (.*?)\|$", re.MULTILINE)
_CAMS = "pytorch_grad_cam"
# Where the names in the first column of a section's table come from.
PEERS = {
    "TorchRay": [
        *(f"torchray.attribution.{name}" for name in ("gradient", "deconvnet", "guided_backprop", "linear_approx")),
        *(f"torchray.attribution.{name}" for name in ("grad_cam", "excitation_backprop", "rise")),
        *("torchray.attribution.extremal_perturbation", "torchray.attribution.common", "torchray.utils"),
        "torchray.benchmark.pointing_game",
    ],
    "Captum": ["captum.attr"],
    "pytorch-grad-cam": [_CAMS, f"{_CAMS}.utils.model_targets", f"{_CAMS}.utils.image"],
    "torch-cam": ["torchcam.methods"],
    "zennit": ["zennit.composites", "zennit.attribution"],
}
DISTRIBUTIONS = dict(zip(PEERS, ("torchray", "captum", "grad-cam", "torchcam", "zennit"), strict=True))
NOTES = ("", "scaled", "other draws", "differs")  # how a row's last cell begins


class Row(NamedTuple):
    """Two expressions, and how what they give is compared."""

    peer: str
    theirs: str
    ours: str
    note: str

    @property
    def kind(self) -> str:
        """One of ``NOTES``."""
        return re.split(r"[:;]", self.note)[0]


def sections() -> dict[str, str]:
    """The text of each library's section."""
    return dict(re.findall(r"^## (.+)\n((?:(?!^## ).*\n)*)", PAGE, re.MULTILINE))


ROWS = [
    Row(peer, theirs, ours, note.strip())
    for peer, section in sections().items()
    for theirs, ours, note in _ROW.findall(section)
]


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer3 = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
        self.layer4 = nn.Sequential(nn.Conv2d(4, 5, 3, 2, 1), nn.ReLU())
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.fc(self.avgpool(self.layer4(self.layer3(x))).flatten(1))
        return result


class _Segmenter(nn.Module):
    def __init__(self, model: _Net) -> None:
        super().__init__()
        self.layer3, self.layer4, self.fc = model.layer3, model.layer4, model.fc

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.fc(self.layer4(self.layer3(x)).movedim(1, 3)).movedim(3, 1)
        return result


def names(peer: str) -> dict[str, Any]:
    """What the page's cells speak of: in double precision, where the library does not mind."""
    torch.manual_seed(0)
    dtype = torch.float64 if peer in ("Captum", "zennit") else torch.float32
    model = _Net().to(dtype).eval()
    with torch.no_grad():
        model.fc.weight.mul_(5)
    x, baselines = torch.randn(2, 3, 16, 16).to(dtype), torch.randn(4, 3, 16, 16).to(dtype)
    one_hot = torch.eye(3, dtype=dtype)[[1, 2]]
    vit = VisionTransformer(16, 4, 2, 2, 8, 16, num_classes=3).eval()
    nn.init.normal_(vit.heads.head.weight)  # which starts at zero
    return {
        "torch": torch,
        "model": model,
        "front": nn.Sequential(model.layer3, model.layer4),
        "segmenter": _Segmenter(model),
        "vit": vit,
        "x": x,
        "t": [1, 2],
        "baselines": baselines,
        "one_hot": one_hot,
        "scores": one_hot * model(x).detach(),
        "mask": torch.arange(5)[None, :, None, None].expand(1, 5, 8, 8) // 2,
        "areas": torch.arange(16)[None, None, :, None].expand(1, 3, 16, 16) // 4,
        "region": np.eye(8),
        "low": torch.full_like(x, -4.0),
        "high": torch.full_like(x, 4.0),
        "photo": np.random.RandomState(0).rand(16, 16, 3).astype(np.float32),
    }


def ours(row: Row) -> Tensor:
    """What our cell of a row gives, in double precision."""
    known = {**vars(images), **vars(games), **vars(saliency), "rules": saliency.rules, "targets": saliency.targets}
    return _value(row.ours, known | names(row.peer))


def theirs(row: Row) -> Tensor:
    """What their cell gives. ``ModuleNotFoundError`` where the library is not installed."""
    known: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for place in PEERS[row.peer]:
            known |= vars(importlib.import_module(place))
        return _value(row.theirs, known | names(row.peer))


def _value(cell: str, known: Mapping[str, Any]) -> Tensor:
    found = eval(cell, dict(known))
    tensor = found.detach().double() if isinstance(found, Tensor) else torch.tensor(np.array(found)).double()
    if not torch.isfinite(tensor).all() or not tensor.abs().max() > 0:
        raise ValueError(f"cell={cell!r} is not finite, or 0 everywhere.")
    return tensor


def scaled(maps: Tensor) -> Tensor:
    """Each map stretched to [0, 1]."""
    rows = maps.flatten(1)
    low, high = rows.amin(1, keepdim=True), rows.amax(1, keepdim=True)
    return (rows - low) / (high - low)


def difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, relative to their largest value."""
    return float((ours - theirs.reshape(ours.shape)).abs().max() / theirs.abs().max())


class Agreement(NamedTuple):
    """How many rows of a library have each note, and the largest difference of those that are equal, and scaled."""

    peer: str
    version: str
    rows: dict[str, int]
    errors: dict[str, float]


def measure() -> Iterator[Agreement]:
    """Compare with every library that is installed."""
    for peer, distribution in DISTRIBUTIONS.items():
        try:
            installed = version(distribution)
        except PackageNotFoundError:
            continue
        rows = [row for row in ROWS if row.peer == peer]
        count = {note: sum(row.kind == note for row in rows) for note in NOTES}
        same = [difference(ours(row), theirs(row)) for row in rows if row.kind == ""]
        stretched = [difference(scaled(ours(row)), scaled(theirs(row))) for row in rows if row.kind == "scaled"]
        yield Agreement(peer, installed, count, {"": max(same, default=0.0), "scaled": max(stretched, default=0.0)})
