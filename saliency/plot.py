"""Maps side by side. The only file that uses matplotlib, from the extra ``plot``."""

from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING

from PIL.Image import Image
from torch import Tensor

from saliency.engine.checks import check_type, shown
from saliency.images import as_image, check_path, overlay, to_picture, writing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Figure
else:
    Figure = object  # what draws is imported when something is drawn

CELL, GAP, HEAD, LETTER = 1.7, 0.04, 0.16, 0.07  # inches: a column, the space between, the top line, a wide letter
DPI = 150
LONGEST = 8  # times its other side that an image is drawn with: a strip of 1 x 20,000 pixels is squeezed
# Pixels of a figure of tiles: the screen that it fits on, a tile's widest and narrowest, the space between.
SCREEN, WIDEST, NARROWEST, SPACE, SCREEN_DPI = (1600, 900), 300, 100, 6, 100
MOST_PIXELS = 60_000  # matplotlib draws fewer than 2^16 pixels a side


def show(images: Sequence[Tensor], maps: Mapping[str, Sequence[Tensor]], titles: Sequence[str] = ()) -> Figure:
    """Return a figure with a row for every image: the image, and a column for every method's map laid over it.

    ``images`` are N tensors (3, H, W) in [0, 1], of any size, or anything that :func:`saliency.images.as_image` takes;
    ``maps`` holds for every method N maps (…, h, w) at any resolution and scale; ``titles`` are N texts at the left, or
    none. Each map is normalised on its own, for display.
    Raises :class:`ValueError` where the numbers differ, :class:`ImportError` where the extra ``plot`` is missing.

    >>> import torch
    >>> figure = show(torch.rand(2, 3, 32, 32), {"grad_cam": torch.rand(2, 1, 4, 4)}, ["cat", "dog"])
    >>> len(figure.axes)
    4
    """
    check_type("images", images, (Sequence, Tensor), "tensors (3, H, W)")
    check_type("maps", maps, Mapping, "lists of maps by the names of methods")
    check_type("titles", titles, (list, tuple), "texts")
    if isinstance(images, Tensor) and images.ndim != 4:
        raise ValueError(f"images={shown(images)} is not a batch; expected (N, 3, H, W), or a list of images.")
    for name, given in {"images": images, **maps, "titles": titles or images}.items():
        check_type(name, given, (Sequence, Tensor), "one for every image")
        if isinstance(given, Tensor) and not given.ndim:
            raise ValueError(f"{name}={shown(given)} is a single number; expected one for every image.")
        if not len(images) or len(given) != len(images):
            counts = f"{len(given)} entries do not fit {len(images)} images"
            raise ValueError(f"{name}={counts}; expected one for every image.")
    for title in titles:
        check_type("titles", title, str, "a text for every image")
    images = [as_image(image) for image in images]
    figure, axes = _grid([image.shape[-2] / image.shape[-1] for image in images], 1 + len(maps), titles)
    for row, image in enumerate(images):
        pictures = [to_picture(image), *(overlay(image, column[row]) for column in maps.values())]
        for axis, picture in zip(axes[row], pictures, strict=True):
            axis.imshow(picture, interpolation="lanczos", aspect="auto")
        if titles:
            axes[row][0].set_ylabel(
                titles[row], fontsize=6, rotation=0, ha="right", va="center", labelpad=3, parse_math=False
            )
    for axis, name in zip(axes[0], ["image", *maps], strict=True):
        axis.set_title(name, fontsize=7, pad=3, parse_math=False)
    return figure


def tiles(groups: Sequence[Sequence[tuple[str, Image]]], heading: str = "") -> Figure:
    """Return a figure of pictures, each under its title, as large as fits on a screen; each group starts a new row.

    It has at most 1600 x 900 pixels, unless the pictures would be narrower than 100. Raises :class:`ValueError` where
    there are none, :class:`ImportError` where the extra ``plot`` is missing.

    >>> from PIL import Image
    >>> len(tiles([[("photo", Image.new("RGB", (60, 40))), ("grad_cam", Image.new("RGB", (60, 40)))]], "a dog").axes)
    2
    """
    check_type("groups", groups or None, Sequence, "groups of titles and pictures")
    panels = [panel for group in groups for panel in group]
    shape = max(min(max(picture.height / picture.width, 1 / LONGEST), LONGEST) for _, picture in panels)
    head, above = 22 if heading else 0, 13 * max(title.count("\n") + 1 for title, _ in panels) + 4
    columns, width = _tiling([len(group) for group in groups], shape, above, head)
    pitch = width * shape + above
    rows = [group[at : at + columns] for group in groups for at in range(0, len(group), columns)]
    size = (columns * (width + SPACE) + SPACE, head + len(rows) * pitch + SPACE)
    figure = _figure(size[0] / SCREEN_DPI, size[1] / SCREEN_DPI, SCREEN_DPI)
    if heading:
        figure.text(0.5, 1 - 11 / size[1], heading, fontsize=9, ha="center", va="center", parse_math=False)
    for (row, column), (title, picture) in zip(
        ((row, column) for row, those in enumerate(rows) for column in range(len(those))), panels, strict=True
    ):
        left, bottom = SPACE + column * (width + SPACE), size[1] - head - (row + 1) * pitch
        axis = figure.add_axes((left / size[0], bottom / size[1], width / size[0], width * shape / size[1]))
        axis.imshow(picture, interpolation="lanczos")
        axis.set(xticks=[], yticks=[], frame_on=False, anchor="N")
        longest = max(map(len, title.split("\n")))
        axis.set_title(
            title, fontsize=max(4, min(8, 1.2 * width / max(1, longest))), pad=3, linespacing=1.1, parse_math=False
        )
    return figure


def _tiling(counts: Sequence[int], shape: float, above: int, head: int) -> tuple[int, float]:
    """How many pictures stand in a row, and their width in pixels: the largest that fit on a screen."""
    wide, high = SCREEN

    def rows(columns: int) -> int:
        return sum(-(-count // columns) for count in counts)

    def width(columns: int) -> float:
        highest = ((high - head - SPACE) / rows(columns) - above) / shape
        return min(WIDEST, (wide - SPACE) / columns - SPACE, highest)

    # Of those as large the fewest rows, and of these the most even ones.
    columns = max(range(1, max(counts) + 1), key=lambda columns: (width(columns), -rows(columns), -columns))
    if width(columns) >= NARROWEST:
        return columns, width(columns)
    return min(max(counts), int((wide - SPACE) // (NARROWEST + SPACE))), NARROWEST


def contact_sheet(
    images: Sequence[Tensor], maps: Mapping[str, Sequence[Tensor]], titles: Sequence[str], path: str | PathLike[str]
) -> None:
    """Write the figure of :func:`show` as an image file; missing folders are created. Same errors."""
    check_path("path", path)
    save_figure(show(images, maps, titles), path)


def save_figure(figure: Figure, path: str | PathLike[str], argument: str = "path", others: str = "") -> None:
    """Write a figure as a file of the kind that its suffix says; missing folders are created.

    ``ValueError`` names the ``argument`` where the file cannot be written, and ``others`` among the kinds expected.
    """
    check_path(argument, path)
    known = figure.canvas.get_supported_filetypes()
    if Path(path).suffix.lstrip(".").lower() not in known:
        raise ValueError(
            f"{argument}={fspath(path)!r} has no known suffix; expected {others}one of .{', .'.join(known)}."
        )
    with writing(argument, path) as file:
        figure.savefig(file, facecolor="white")


def _grid(shapes: Sequence[float], columns: int, titles: Sequence[str]) -> "tuple[Figure, list[list[Axes]]]":
    """Return a figure and its rows of axes, without frames, as high as ``shapes`` (height by width) says."""
    left = 2 * GAP + LETTER * max((len(line) for title in titles for line in title.split("\n")), default=0)
    shapes = [min(max(shape, 1 / LONGEST), LONGEST) for shape in shapes]
    width, height = left + columns * (CELL + GAP), HEAD + sum(CELL * shape + GAP for shape in shapes)
    figure = _figure(width, height, DPI)
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
    """Open a window with the figure, if matplotlib has an interactive backend."""
    from matplotlib import pyplot

    manager = pyplot.figure().canvas.manager
    if manager is not None:
        manager.canvas.figure = figure
        figure.set_canvas(manager.canvas)
    pyplot.show()


def _figure(width: float, height: float, dpi: int) -> Figure:
    """An empty figure of the given size in inches."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("matplotlib is missing; install the extra 'plot' of saliency-torch.") from error
    return Figure(figsize=(width, height), dpi=min(dpi, MOST_PIXELS / max(width, height)))
