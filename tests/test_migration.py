"""The page for those who come from another library: every row runs, and both of its cells give what it says."""

import importlib
import re
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import saliency
from saliency import images
from tests.parity.agreement import relative_error

PAGE = (Path(__file__).parent.parent / "docs" / "migrating.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| `(.+)` \| `(.+)` \| (.*?)\|$", re.MULTILINE)
_CAMS = "pytorch_grad_cam"
# Where the names in the first column of a section's table come from.
PEERS = {
    "TorchRay": [
        *(f"torchray.attribution.{name}" for name in ("gradient", "deconvnet", "guided_backprop", "linear_approx")),
        *(f"torchray.attribution.{name}" for name in ("grad_cam", "excitation_backprop", "rise")),
        *("torchray.attribution.extremal_perturbation", "torchray.attribution.common", "torchray.utils"),
    ],
    "Captum": ["captum.attr"],
    "pytorch-grad-cam": [_CAMS, f"{_CAMS}.utils.model_targets", f"{_CAMS}.utils.image"],
    "torch-cam": ["torchcam.methods"],
    "zennit": ["zennit.composites", "zennit.attribution"],
}
TOLERANCES = {"zennit": 1e-4}  # it adds its epsilon twice
NOTES = ("", "scaled", "other draws", "differs")  # how a row's last cell begins


class Row(NamedTuple):
    """Two expressions, and how what they give is compared."""

    peer: str
    theirs: str
    ours: str
    note: str


ROWS = [
    Row(peer, theirs, ours, note.strip())
    for peer, section in re.findall(r"^## (.+)\n((?:(?!^## ).*\n)*)", PAGE, re.MULTILINE)
    for theirs, ours, note in ROW.findall(section)
]
CAPTUM = {
    *("LayerConductance", "LayerActivation", "InternalInfluence", "LayerGradientXActivation", "LayerGradCam"),
    *("LayerDeepLift", "LayerDeepLiftShap", "LayerGradientShap", "LayerIntegratedGradients", "LayerFeatureAblation"),
    *("LayerLRP", "Saliency", "InputXGradient", "GuidedBackprop", "Deconvolution", "GuidedGradCam", "LRP", "Occlusion"),
    *("IntegratedGradients", "DeepLift", "DeepLiftShap", "GradientShap", "NoiseTunnel", "FeatureAblation"),
    *("FeaturePermutation", "LayerAttribution"),
}


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


def _names(peer: str) -> dict[str, Any]:
    """What the page's cells speak of: in double precision, where the library does not mind."""
    torch.manual_seed(0)
    dtype = torch.float64 if peer in ("Captum", "zennit") else torch.float32
    model = _Net().to(dtype).eval()
    with torch.no_grad():
        model.fc.weight.mul_(5)
    x, baselines = torch.randn(2, 3, 16, 16).to(dtype), torch.randn(4, 3, 16, 16).to(dtype)
    one_hot = torch.eye(3, dtype=dtype)[[1, 2]]
    return {
        "torch": torch,
        "model": model,
        "segmenter": _Segmenter(model),
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


def _of(cell: str, known: dict[str, Any]) -> Tensor:
    found = eval(cell, known, None)
    tensor = found.detach().double() if isinstance(found, Tensor) else torch.tensor(np.array(found)).double()
    assert torch.isfinite(tensor).all()
    assert float(tensor.abs().max()) > 0
    return tensor


def _ours(row: Row) -> Tensor:
    return _of(row.ours, {**vars(images), **vars(saliency), "rules": saliency.rules, **_names(row.peer)})


def _scaled(maps: Tensor) -> Tensor:
    rows = maps.flatten(1)
    low, high = rows.amin(1, keepdim=True), rows.amax(1, keepdim=True)
    return (rows - low) / (high - low)


def _id(row: Row) -> str:
    return f"{row.peer}-{row.theirs[:60]}"


def test_every_library_has_its_rows():
    assert {row.peer for row in ROWS} == set(PEERS)
    assert PAGE.count("\n| `") == len(ROWS)
    assert all(re.split(r"[:;]", row.note)[0] in NOTES for row in ROWS)


def test_every_attribution_of_captums_has_its_row():
    assert {re.split(r"[.(]", row.theirs)[0] for row in ROWS if row.peer == "Captum"} == CAPTUM


@pytest.mark.parametrize("row", ROWS, ids=_id)
def test_our_cell_of_a_row_runs(row):
    _ours(row)


@pytest.mark.parity
@pytest.mark.parametrize("row", ROWS, ids=_id)
def test_both_cells_of_a_row_give_what_it_says(row):
    known: dict[str, Any] = {}
    for place in PEERS[row.peer]:
        pytest.importorskip(place.partition(".")[0])
        known |= vars(importlib.import_module(place))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = _of(row.theirs, known | _names(row.peer))
    ours = _ours(row)
    if not row.note:
        assert relative_error(ours, theirs.reshape(ours.shape)) <= TOLERANCES.get(row.peer, 1e-5)
    elif row.note.startswith("scaled"):
        assert relative_error(_scaled(ours), _scaled(theirs)) <= 1e-3
    elif row.note.startswith("differs") and ours.numel() == theirs.numel():
        assert relative_error(_scaled(ours), _scaled(theirs)) > 1e-3
    else:
        assert ours.numel() == theirs.numel() or "differs" in row.note
