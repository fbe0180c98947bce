"""Explanation: the maps of a photo, what they explain, and the ways to look at them."""

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL.Image import Image
from torch import Tensor

from saliency.engine.targets import Target
from saliency.images import check_path, overlay, to_picture
from saliency.networks.preprocessing import Recipe
from saliency.plot import tiles

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Column(NamedTuple):
    """The maps (1, K, h, w) of a method at a layer, raw scale, and the picture (3, H, W) that they lie on."""

    name: str
    method: str
    layer: str | None
    maps: Tensor
    picture: Tensor


class Score(NamedTuple):
    """A score: what it is called, the index of its class and its value, a probability, where it has them."""

    name: str
    class_index: int | None = None
    value: float | None = None

    def __str__(self) -> str:
        return self.name if self.value is None else f"{self.name} {self.value:.1%}"


@dataclass(frozen=True, eq=False, repr=False)
class Explanation:
    """What :func:`saliency.explain` returns: a map of every method, for every target.

    ``maps[name]`` is (1, K, h, w), raw scale, at the layer's resolution; ``layer[name]`` the layer that was named or
    found, ``''`` the input, None where a method has no single one; ``target`` what was explained, as methods take it;
    ``scores`` its K names, class indices and values, ``predicted`` the highest ones. For an ``e`` of them,
    ``method(model, e.input, e.target, e.layer[name])`` gives the same map. ``why`` says how preprocessing, target and
    layers were chosen, ``refused`` which methods were left out.
    In a notebook it is shown as its figure.
    """

    photo: str
    columns: tuple[Column, ...]
    target: Target
    scores: tuple[Score, ...]
    predicted: tuple[Score, ...]
    input: Tensor
    preprocessing: Recipe
    why: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)

    @property
    def maps(self) -> dict[str, Tensor]:
        """The maps (1, K, h, w) by the name of their column: the method, where several are asked for also the layer."""
        return {column.name: column.maps for column in self.columns}

    @property
    def layer(self) -> dict[str, str | None]:
        """The layer of each column."""
        return {column.name: column.layer for column in self.columns}

    @property
    def picture(self) -> Tensor:
        """The part of the photo that is explained, (3, H, W) in [0, 1]."""
        return self.columns[0].picture

    def overlays(self) -> dict[tuple[str, int], Image]:
        """Every map laid over the photo, by its column and the number of its target."""
        return {
            (column.name, number): overlay(column.picture, column.maps[0, number])
            for number in range(len(self.scores))
            for column in self.columns
        }

    def figure(self) -> "Figure":
        """The photo, and beside it every map: a figure of matplotlib that fits on a screen, unless there are too many.

        Raises :class:`ImportError` where the extra ``plot`` is missing.
        """
        alone = len(self.scores) == 1
        panels = [(self.photo, to_picture(self.picture))]
        for (name, number), picture in self.overlays().items():
            panels.append((name if alone else f"{name}\n{self.scores[number]}", picture))
        return tiles(panels, str(self.scores[0]) if alone else "")

    def save(self, path: str | Path) -> None:
        """Write a file, which its suffix tells apart; missing folders are made.

        ``.html``: a viewer that needs nothing else; ``.npz``: the maps by name; all else that matplotlib writes, as
        ``.png`` and ``.pdf``: the figure.
        """
        check_path("path", path)
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".html":
            from saliency.explaining.viewer import viewer_page, viewer_photo

            path.write_text(viewer_page([viewer_photo(self)]), "utf-8")
        elif path.suffix == ".npz":
            np.savez(path, **{name: maps.float().cpu().numpy() for name, maps in self.maps.items()})  # type: ignore[arg-type]
        else:
            figure = self.figure()
            known = figure.canvas.get_supported_filetypes()
            if path.suffix.lstrip(".").lower() not in known:
                raise ValueError(
                    f"path={str(path)!r} has no known suffix; expected .html, .npz or one of {', '.join(known)}."
                )
            figure.savefig(path, facecolor="white")

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        try:
            self.figure().savefig(file, format="png", facecolor="white")
        except ImportError:  # one map is better than none
            next(iter(self.overlays().values())).save(file, "PNG")
        return file.getvalue()

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name} {tuple(maps.shape)}" for name, maps in self.maps.items())
        lines = [f"{self.photo}: {', '.join(map(str, self.scores))}", f"maps: {shapes}", *self.why]
        left_out = [f"left out: {name}: {problem}" for name, problem in self.refused.items()]
        return "\n".join([lines[0], *(f"  {line}" for line in [*lines[1:], *left_out])])
