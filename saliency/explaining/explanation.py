"""Explanation: the maps of a photo, what they explain, and the ways to look at them."""

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

import numpy as np
from PIL.Image import Image
from torch import Tensor

from saliency.engine.targets import Target
from saliency.explaining.columns import Column, Score
from saliency.explaining.viewer import viewer_page, viewer_photo
from saliency.images import check_path, overlay, to_picture, writing
from saliency.networks.preprocessing import Preprocessing
from saliency.plot import Figure, save_figure, tiles

ROW = 6  # so many pictures stand in one row, whatever their targets


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
    preprocessing: Preprocessing
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

    def figure(self) -> Figure:
        """The photo, and beside it every map: a figure of matplotlib that fits on a screen, unless there are too many.

        Raises :class:`ImportError` where the extra ``plot`` is missing.
        """
        maps = list(self.overlays().items())
        several = len(self.scores) > 1
        panels = [(f"{name}\n{self.scores[k]}" if several else name, picture) for (name, k), picture in maps]
        photo = (self.photo, to_picture(self.picture))
        if not several:
            return tiles([[photo, *panels]], str(self.scores[0]))
        count = len(self.columns)
        if len(panels) < ROW or count == 1:
            return tiles([[photo, *panels]])
        return tiles([[photo, *panels[start : start + count]] for start in range(0, len(panels), count)])

    def viewed(self) -> dict[str, object]:
        """The viewer's data, for JSON: one page can show several photos."""
        return viewer_photo(self.photo, self.columns, self.scores, self.predicted, self.why)

    def save(self, path: str | PathLike[str]) -> None:
        """Write a file of the kind that its suffix says; missing folders are created.

        ``.html``: a self-contained viewer; ``.npz``: the maps by name; all else that matplotlib writes, as
        ``.png`` and ``.pdf``: the figure. Raises ``ValueError`` for another suffix, and where it cannot be written.
        """
        check_path("path", path)
        suffix = Path(path).suffix.lower()
        if suffix not in (".html", ".npz"):
            save_figure(self.figure(), path, others=".html, .npz or ")
            return
        with writing("path", path) as place, place.open("wb") as file:
            if suffix == ".html":
                file.write(viewer_page([self.viewed()]).encode())
            else:
                np.savez(file, **{name: maps.float().cpu().numpy() for name, maps in self.maps.items()})  # type: ignore[arg-type]

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
