"""Maps side by side. The only file that uses matplotlib, from the extra ``plot``."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from saliency.engine.checks import check_type, shown
from saliency.images import check_path

from .images import overlay, to_picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CELL, GAP, HEAD, LETTER = 1.7, 0.04, 0.16, 0.07  # inches: a column, the space between, the top line, a wide letter
DPI = 150
LONGEST = 8  # times its other side that an image is drawn with: a strip of 1 x 20,000 pixels is squeezed
MOST_PIXELS = 60_000  # matplotlib draws fewer than 2^16 pixels a side


def show(images: Sequence[Tensor], maps: Mapping[str, Sequence[Tensor]], titles: Sequence[str] = ()) -> "Figure":
    """Return a figure with a row for every image: the image, and a column for every method's map laid over it.

    ``images`` are N tensors (3, H, W) in [0, 1], of any size; ``maps`` holds for every method N maps (…, h, w) at any
    resolution and scale; ``titles`` are N texts at the left, or none. Each map is normalised on its own, for display.
    Raises :class:`ValueError` where the numbers differ, :class:`ImportError` where the extra ``plot`` is missing.

    >>> import torch
    >>> figure = show(torch.rand(2, 3, 32, 32), {"grad_cam": torch.rand(2, 1, 4, 4)}, ["cat", "dog"])
    >>> len(figure.axes)
    4
    """
    check_type("images", images, (Sequence, Tensor), "tensors (3, H, W)")
    check_type("maps", maps, Mapping, "lists of maps by the names of methods")
    check_type("titles", titles, (list, tuple), "texts")
    for name, given in {"images": images, **maps, "titles": titles or images}.items():
        check_type(name, given, (Sequence, Tensor), "one for every image")
        if isinstance(given, Tensor) and not given.ndim:
            raise ValueError(f"{name}={shown(given)} is a single number; expected one for every image.")
        if not len(images) or len(given) != len(images):
            raise ValueError(f"{name}={len(given)!r} entries do not fit; accepted is one for every image.")
    for name, values, kind in (("images", images, Tensor), ("titles", titles, str)):
        for value in values:
            check_type(name, value, kind, f"a {kind.__name__} for every image")
    figure, axes = _grid([image.shape[-2] / image.shape[-1] for image in images], 1 + len(maps), titles)
    for row, image in enumerate(images):
        pictures = [to_picture(image), *(overlay(image, column[row]) for column in maps.values())]
        for axis, picture in zip(axes[row], pictures, strict=True):
            axis.imshow(picture, interpolation="lanczos", aspect="auto")
        if titles:
            axes[row][0].set_ylabel(titles[row], fontsize=6, rotation=0, ha="right", va="center", labelpad=3)
    for axis, name in zip(axes[0], ["image", *maps], strict=True):
        axis.set_title(name, fontsize=7, pad=3)
    return figure


def contact_sheet(
    images: Sequence[Tensor], maps: Mapping[str, Sequence[Tensor]], titles: Sequence[str], path: str | Path
) -> None:
    """Write the figure of :func:`show` as an image file; missing folders are made. Same errors."""
    check_path("path", path)
    figure = show(images, maps, titles)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, facecolor="white")


def _grid(shapes: Sequence[float], columns: int, titles: Sequence[str]) -> "tuple[Figure, list[list[Axes]]]":
    """Return a figure and its rows of axes, without frames, as high as ``shapes`` (height by width) says."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("matplotlib is missing; install the extra 'plot' of saliency-torch.") from error
    left = 2 * GAP + LETTER * max((len(line) for title in titles for line in title.split("\n")), default=0)
    shapes = [min(max(shape, 1 / LONGEST), LONGEST) for shape in shapes]
    width, height = left + columns * (CELL + GAP), HEAD + sum(CELL * shape + GAP for shape in shapes)
    figure = Figure(figsize=(width, height), dpi=min(DPI, MOST_PIXELS / max(width, height)))
    rows, top = [], height - HEAD
    for shape in shapes:
        bottom = top - CELL * shape
        boxes = [(left + column * (CELL + GAP), bottom, CELL, top - bottom) for column in range(columns)]
        rows.append([figure.add_axes((x / width, y / height, w / width, h / height)) for x, y, w, h in boxes])
        top = bottom - GAP
    for axis in figure.axes:
        axis.set(xticks=[], yticks=[], frame_on=False)
    return figure, rows


def display(figure: "Figure") -> None:
    """Open a window with the figure, where matplotlib has one to open."""
    from matplotlib import pyplot

    manager = pyplot.figure().canvas.manager
    if manager is not None:
        manager.canvas.figure = figure
        figure.set_canvas(manager.canvas)
    pyplot.show()
