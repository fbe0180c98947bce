"""The README's table for those who come from Captum: every row runs, and both of its cells give the same."""

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import saliency

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `(\w+\(.*\)\.attribute\(.*\))` \| `(\w+\(.*\))` \|$", README, re.MULTILINE)
CAPTUM = {
    *("LayerConductance", "LayerActivation", "InternalInfluence", "LayerGradientXActivation", "LayerGradCam"),
    *("LayerDeepLift", "LayerDeepLiftShap", "LayerGradientShap", "LayerIntegratedGradients", "LayerFeatureAblation"),
    "LayerLRP",
}
RANDOM = ("gradient_shap",)  # each library draws its own numbers


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer3 = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
        self.layer4 = nn.Sequential(nn.Conv2d(4, 5, 3, 2, 1), nn.ReLU())
        self.head = nn.Sequential(nn.Conv2d(5, 6, 2), nn.Tanh(), nn.Flatten(), nn.Linear(54, 3))

    def forward(self, x: torch.Tensor) -> Any:
        return self.head(self.layer4(self.layer3(x)))


def _names() -> dict[str, Any]:
    torch.manual_seed(0)
    model = _Net().double().eval()
    x, baselines = torch.randn(2, 3, 8, 8).double(), torch.randn(4, 3, 8, 8).double()
    return {"model": model, "x": x, "t": 1, "baselines": baselines}


def _ours(cell: str) -> torch.Tensor:
    method = cell.partition("(")[0]
    if method == "lrp" and method not in saliency.METHODS:
        pytest.skip("there is no lrp yet")
    found = eval(cell, {**vars(saliency)}, _names())
    assert isinstance(found, torch.Tensor)
    return found


def _id(row: tuple[str, str]) -> str:
    return row[1].partition("(")[0]


def test_every_attribution_of_captums_has_its_row():
    assert [row[0].partition("(")[0] for row in ROWS] == list(dict.fromkeys(row[0].partition("(")[0] for row in ROWS))
    assert {row[0].partition("(")[0] for row in ROWS} == CAPTUM


@pytest.mark.parametrize("row", ROWS, ids=_id)
def test_a_row_has_the_layers_shape(row):
    shape = (2, 1, 4, 4) if _id(row) == "grad_cam" else (2, 5, 4, 4)
    found = _ours(row[1])
    assert found.shape == shape
    assert float(found.abs().max()) > 0


@pytest.mark.parity
@pytest.mark.parametrize("row", [row for row in ROWS if _id(row) not in (*RANDOM, "lrp")], ids=_id)
def test_both_cells_of_a_row_give_the_same(row):
    attr = pytest.importorskip("captum.attr")
    names = _names()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = eval(row[0], {**vars(attr)}, names)
    assert float((_ours(row[1]) - theirs.detach()).abs().max()) <= 1e-6 * float(theirs.detach().abs().max())
