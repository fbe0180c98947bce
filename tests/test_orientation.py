"""Orientation: where the score depends on one patch of the input alone, every map has its maximum there.

The patch is the only bright one too, so that methods that look at activations alone find it. No grid is a square, and
no patch stands where a grid that is turned, flipped or shifted by a token would show one.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saliency import METHODS
from tests.cases import ATTENTION, GENERAL, NOTICES, MethodCase, Net

pytestmark = NOTICES

CHANNELS, PATCH, CLASS = 6, 4, 1
OPTIONS: dict[str, dict[str, Any]] = {
    "rise": {"num_masks": 150, "num_cells": 4},
    "extremal_perturbation": {"areas": (0.2,), "max_iter": 30, "step": 2, "sigma": 2, "smooth": 0.1},
}
Tokens = Callable[[Net, Tensor], Tensor]


class Layout(NamedTuple):
    """What becomes of the embedded patches (N, C, *grid) at the last layer, and how the score reads one cell of it."""

    forward: Callable[[Net, Tensor, tuple[int, ...]], Tensor]
    grid: tuple[int, ...] = (3, 5)
    cell: tuple[int, ...] = (1, 3)
    size: tuple[int, ...] | None = None  # of the input, where the model resizes it


def number(cell: tuple[int, ...], grid: tuple[int, ...]) -> int:
    """The number of a cell, the last axis first."""
    at = 0
    for index, side in zip(cell, grid, strict=True):
        at = at * side + index
    return at


def tokens(x: Tensor) -> Tensor:
    return x.flatten(2).mT


def channels_first(s: Net, y: Tensor, cell: tuple[int, ...]) -> Tensor:
    return s.last(y)[(slice(None), slice(None), *cell)]


def channels_last(s: Net, y: Tensor, cell: tuple[int, ...]) -> Tensor:
    return s.last(y.movedim(1, -1))[(slice(None), *cell)]


def behind(prefix: int) -> Callable[[Net, Tensor, tuple[int, ...]], Tensor]:
    """Tokens with so many of the model's own in front."""

    def forward(s: Net, y: Tensor, cell: tuple[int, ...]) -> Tensor:
        own = torch.full((len(y), prefix, CHANNELS), 0.1, dtype=y.dtype)
        return s.last(torch.cat([own, tokens(y)], 1))[:, prefix + number(cell, tuple(y.shape[2:]))]

    return forward


def before_batch(prefix: int) -> Callable[[Net, Tensor, tuple[int, ...]], Tensor]:
    """The same tokens as (L, N, C)."""

    def forward(s: Net, y: Tensor, cell: tuple[int, ...]) -> Tensor:
        own = torch.full((len(y), prefix, CHANNELS), 0.1, dtype=y.dtype)
        x = torch.cat([own, tokens(y)], 1).transpose(0, 1) if prefix else y.flatten(2).permute(2, 0, 1)
        return s.last(x)[prefix + number(cell, tuple(y.shape[2:]))]

    return forward


def windows(s: Net, y: Tensor, cell: tuple[int, ...]) -> Tensor:
    """Shifted windows of 2 x 2 cells, put together again."""
    y = torch.roll(y.permute(0, 2, 3, 1), (-1, -1), (1, 2))
    n, h, w, c = y.shape
    parts = s.inside(y.view(n, h // 2, 2, w // 2, 2, c).transpose(2, 3).reshape(-1, 4, c))
    y = parts.view(n, h // 2, w // 2, 2, 2, c).transpose(2, 3).reshape(n, h, w, c)
    return s.last(torch.roll(y, (1, 1), (1, 2)).view(n, h * w, c))[:, number(cell, (h, w))]


LAYOUTS = {
    "NCHW": Layout(channels_first),
    "NHWC": Layout(channels_last),
    **{f"tokens behind {prefix}": Layout(behind(prefix)) for prefix in range(6)},
    "tokens before the batch": Layout(before_batch(0)),
    "tokens before the batch, behind 1": Layout(before_batch(1)),
    "windows": Layout(windows, (2, 6), (1, 4)),
    "1-D": Layout(channels_first, (12,), (9,)),
    "1-D tokens": Layout(behind(0), (12,), (9,)),
    "3-D": Layout(channels_first, (3, 2, 3), (2, 0, 1)),
    "3-D channels last": Layout(channels_last, (3, 2, 3), (2, 0, 1)),
    "3-D tokens": Layout(behind(1), (3, 2, 3), (2, 0, 1)),
    "tall": Layout(behind(1), (7, 2), (5, 0)),
    "resized": Layout(channels_first, size=(36, 30)),
    "resized tokens": Layout(behind(1), size=(36, 30)),
}


def network(layout: Layout) -> Net:
    """Patches are embedded; the score is a layer's of the one cell."""
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(layout.grid) - 1]
    inner = [PATCH * side for side in layout.grid]

    def forward(s: Net, x: Tensor) -> Tensor:
        resized = x if layout.size is None else F.interpolate(x, inner)
        return s.fc(layout.forward(s, s.embed(resized).relu(), layout.cell).relu())

    return positive(
        Net(
            forward,
            embed=kind(3, CHANNELS, PATCH, PATCH),
            inside=nn.Identity(),
            last=nn.Dropout(0.5),
            fc=nn.Linear(CHANNELS, 3),
        )
    )


def positive(model: nn.Module) -> nn.Module:
    """Weights above 0, so that the score rises with the patch, by far more than the size of a mask counts."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.rand(parameter.shape, generator=generator) + 0.5
            parameter.copy_(drawn / parameter[0].numel() if name.endswith("weight") else 0.01 * drawn)
        model.fc.weight *= torch.tensor([[5.0], [30.0], [5.0]])
    return model.double().eval()


def place(layout: Layout) -> tuple[slice, ...]:
    """Where the patch is in the input."""
    sides = layout.size or tuple(PATCH * side for side in layout.grid)
    return tuple(
        slice(at * side // cells, -(-(at + 1) * side // cells))
        for at, side, cells in zip(layout.cell, sides, layout.grid, strict=True)
    )


def images(layout: Layout) -> Tensor:
    """An image that is dark but for the patch, and one that is dark everywhere."""
    sides = layout.size or tuple(PATCH * side for side in layout.grid)
    x = 0.05 * torch.rand(2, 3, *sides, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x[(0, slice(None), *place(layout))] += 1
    return x


def peak_is_there(saliency_map: Tensor, layout: Layout) -> bool:
    """Is the largest value of a map (h, w), on any grid, in the patch?"""
    at = torch.unravel_index(saliency_map.argmax(), saliency_map.shape)
    where = zip(at, saliency_map.shape, layout.cell, layout.grid, strict=True)
    return bool(saliency_map.amax() > saliency_map.amin()) and all(
        cell <= (int(index) + 0.5) / side * cells < cell + 1 for index, side, cell, cells in where
    )


def maps(case: MethodCase, model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """The map of the first image where the method looks of itself, and at the layer that is found."""
    options = {**case.options, **OPTIONS.get(case.name, {})}
    explain = METHODS[case.name].function
    found = {case.name: explain(model, x, CLASS, **options)[0, 0]}
    if case.layer == "" and case.kind != "search" and not case.at_input:
        found[f"{case.name} at the layer"] = explain(model, x, CLASS, None, **options)[0, 0]
    return found


def methods_for(name: str) -> list[MethodCase]:
    """All methods; where but the number of tokens in front is another, one of each kind."""
    plane = len(LAYOUTS[name].grid) == 2
    some = [case for case in GENERAL if case.name != "cam" and (plane or case.kind not in ("masks", "search"))]
    few = name.startswith("tokens") and name[-1] not in "01"
    return [case for case in some if case.stands_for_its_kind or not few]


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_maximum_is_where_the_score_looks(name):
    layout = LAYOUTS[name]
    model, x = network(layout), images(layout)
    wrong = []
    for case in methods_for(name):
        wrong += [name for name, found in maps(case, model, x).items() if not peak_is_there(found, layout)]
    assert wrong == []


@pytest.mark.parametrize("name", ["NCHW", "NHWC", "1-D", "3-D channels last", "resized"])
def test_cam_looks_at_the_patch_of_a_pooled_layer(name):
    """All cells are pooled, but only the patch is bright enough for its cell to be above 0."""
    layout = LAYOUTS[name]
    last, grid = layout.forward is channels_last, range(len(layout.grid))

    def pooled(s: Net, y: Tensor, cell: tuple[int, ...]) -> Tensor:
        y = (y - 0.5).relu()
        return s.last(y.movedim(1, -1) if last else y).mean([axis + 2 - last for axis in grid])

    found = METHODS["cam"].function(network(layout._replace(forward=pooled)), images(layout), CLASS)
    assert peak_is_there(found[0, 0], layout)


class Attends(nn.Module):
    """One layer of attention, in which bright tokens are attended to, and a token of the model's own reads the score.

    Without tokens of its own the score is of the mean over all.
    """

    def __init__(self, grid: tuple[int, ...], prefix: int) -> None:
        super().__init__()
        kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(grid) - 1]
        self.embed, self.prefix = kind(3, CHANNELS, PATCH, PATCH), prefix
        self.attention = nn.MultiheadAttention(CHANNELS, 2, batch_first=True)
        self.fc = nn.Linear(CHANNELS, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = tokens(self.embed(x))
        y = torch.cat([torch.full((len(y), self.prefix, CHANNELS), 0.1, dtype=y.dtype), y], 1)
        y = y + self.attention(y, y, y, need_weights=False)[0]
        return self.fc(y[:, 0] if self.prefix else y.mean(1))


@pytest.mark.parametrize("prefix", range(6))
@pytest.mark.parametrize(("grid", "cell"), [((3, 5), (1, 3)), ((7, 2), (5, 0)), ((12,), (9,)), ((3, 2, 3), (2, 0, 1))])
def test_attention_is_read_on_the_grid(grid, cell, prefix):
    layout = Layout(behind(prefix), grid, cell)
    model, x = positive(Attends(grid, prefix)), images(layout)
    # Queries ask for what is bright, and what is dark has a key of the other direction.
    model.attention.in_proj_bias.data = torch.tensor([1.0, -0.3, 0.0], dtype=x.dtype).repeat_interleave(CHANNELS)
    found = {case.name: METHODS[case.name].function(model, x, CLASS)[0, 0] for case in ATTENTION}
    assert [name for name, each in found.items() if not peak_is_there(each, layout)] == []
