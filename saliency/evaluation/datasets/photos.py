"""Photo files with annotations: faulty files and objects are reported and left out."""

import math
import os
import reprlib
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
from PIL import Image
from torch import Tensor

from saliency.evaluation.cases import Annotation, Instance
from saliency.evaluation.printing import printable
from saliency.images import pixels_to_tensor

OVERSHOOT = 1.0  # pixels by which a box may leave its image: coordinates are rounded, and count from 0 or from 1
SHOWN = 5
LONGEST = 600  # characters of a problem
TRUSTED = 2**26  # pixels; a size beyond is compared with that of the file before anything of it is drawn

Name = TypeVar("Name")
Box: TypeAlias = tuple[float, float, float, float]
Loader: TypeAlias = Callable[[Any], Tensor]  # of a path, or of a seed: what its entries have as places


class Entry(NamedTuple):
    """An image as its data set lists it, not yet checked. ``place`` is what the loader takes: a file, or a seed.

    Where ``size`` (height, width) is None, the file has it.
    """

    name: str
    place: Path | int
    size: tuple[int, int] | None
    instances: tuple[Instance, ...]


class Listing(NamedTuple):
    """A data set as its files list it: the classes, the images, and between them problems in words.

    ``source`` is the sha256 of the file that the masks are drawn from, if there is one.
    """

    classes: tuple[str, ...]
    entries: Iterable[Entry | str]
    source: str = ""


@dataclass
class ImageSet:
    """A :class:`saliency.evaluation.cases.Dataset` of images, each of which ``loader(place)`` reads."""

    name: str
    root: Path | None
    classes: tuple[str, ...]
    annotations: Sequence[Annotation]
    problems: tuple[str, ...]
    places: tuple[Path | int, ...]
    loader: Loader
    source: str = ""

    def image(self, index: int) -> Tensor:
        """The image (3, H, W); ``ValueError`` where its file is broken or not of the annotated size."""
        place, size = self.places[index], self.annotations[index].size
        image = self.loader(place)
        if tuple(image.shape[1:]) != size:
            raise ValueError(
                f"photo={str(place)!r} is of size {tuple(image.shape[1:])}, its annotation of size {size}; "
                "expected a photo of the annotated height and width."
            )
        return image


def collect(name: str, root: Path | None, listing: Listing, loader: Loader, on_error: str) -> ImageSet:
    """Return the data set of all images and objects that are sound.

    Raises ``ValueError`` where no image is left, and with ``on_error='refuse'`` where anything is wrong.
    """
    problems: list[str] = []
    annotations: dict[str, Annotation] = {}
    places, classes = [], listing.classes
    for entry in listing.entries:
        if isinstance(entry, str):
            problems.append(entry)
            continue
        try:
            size = _checked_size(entry, root, annotations)
        except (ValueError, OSError) as error:  # of a system's error the text without the path
            problems.append(f"{entry.name}: {getattr(error, 'strerror', None) or error}")
            continue
        found = [(instance, box_problem(instance.box, size)) for instance in entry.instances]
        problems += [f"{entry.name}: a {classes[instance.label]!r} {problem}" for instance, problem in found if problem]
        instances = tuple(one._replace(box=clip_box(one.box, size)) for one, problem in found if not problem)
        annotations[entry.name] = Annotation(entry.name, size, instances)
        places.append(entry.place)
    problems = [printable(_shortened(problem)) for problem in problems]
    if problems and on_error == "refuse":
        shown = " ".join(f"({number}) {problem}" for number, problem in enumerate(problems[:SHOWN], 1))
        raise ValueError(f"root={str(root)!r} holds {len(problems)} problems: {shown}; expected on_error='skip'.")
    if not annotations:
        why = f" ({len(problems)} problems, the first: {problems[0]})" if problems else ""
        raise ValueError(f"root={str(root)!r} holds no sound photo of {name!r}{why}; expected a folder with some.")
    kept = tuple(annotations.values()), tuple(problems), tuple(places)
    return ImageSet(name, root, classes, *kept, loader, listing.source)


def each_photo(names: Iterable[Name], read: Callable[[Name], Iterable[Entry | str]]) -> Iterator[Entry | str]:
    """The entries read from each; for one that raises, a problem that says why it cannot be read."""
    for name in names:
        yield from _attempt(name, read)


def _attempt(name: Name, read: Callable[[Name], Iterable[Entry | str]]) -> list[Entry | str]:
    try:
        return list(read(name))
    except Exception as error:  # files hold whatever was put into them
        return [f"{name}: it cannot be read ({type(error).__name__}: {' '.join(str(error).split())})"]


def _shortened(problem: str) -> str:
    half = LONGEST // 2
    return problem if len(problem) <= LONGEST else f"{problem[:half]} … {problem[-half:]}"


def _checked_size(entry: Entry, root: Path | None, taken: Container[str]) -> tuple[int, int]:
    """The size of an image; ``ValueError`` for a duplicate name, and a file missing, broken or of another size."""
    if entry.name in taken:
        raise ValueError("it is listed twice; the first time counts")
    path = entry.place
    if not isinstance(path, Path):
        return entry.size or (0, 0)
    if root is not None and not Path(os.path.normpath(path)).is_relative_to(os.path.normpath(root)):
        raise ValueError(f"the file {path} is outside of {root}")
    if not path.is_file():
        raise ValueError(f"the file {path} does not exist")
    size = entry.size or stored_size(path)
    if math.prod(size) > TRUSTED and stored_size(path) != size:
        raise ValueError(f"the file {path} is not of the annotated height and width {reprlib.repr(size)}")
    return size


def box_problem(box: Box, size: tuple[int, int]) -> str:
    """The problem with the box x0, y0, x1, y1 in an image of ``size`` = (height, width), or ''.

    It must have an area, and leave the image by no more than a pixel.

    >>> box_problem((4, 2, 4, 9), (20, 30)), box_problem((-1, 2, 4, 20.3), (20, 30))
    ('has the box (4, 2, 4, 9) without area', '')
    """
    (x0, y0, x1, y1), (height, width) = box, size
    if not (x0 < x1 and y0 < y1):  # of NaN nothing is true
        return f"has the box {reprlib.repr(box)} without area"
    if min(x0, y0) < -OVERSHOOT or x1 > width + OVERSHOOT or y1 > height + OVERSHOOT or x0 >= width or y0 >= height:
        return f"has the box {reprlib.repr(box)} outside of its image of {width} x {height} pixels"
    return ""


def clip_box(box: Box, size: tuple[int, int]) -> Box:
    """The box x0, y0, x1, y1, clipped to the image of ``size`` = (height, width): rounding may exceed it.

    >>> clip_box((-1, 2, 4, 20.3), (20, 30))
    (0, 2, 4, 20)
    """
    (x0, y0, x1, y1), (height, width) = box, size
    return max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)


def read_stored(path: Path) -> Tensor:
    """The photo's pixels (3, H, W) in [0, 1] as they are stored: annotations know nothing of an EXIF orientation.

    Raises ``ValueError`` where the file is missing, truncated, broken or not an image.
    """
    try:
        with Image.open(path) as image:
            pixels = np.array(image.convert("RGB"))
    except Exception as error:  # on a broken file, decoders raise whatever comes up
        raise _unreadable(path, error) from error
    return pixels_to_tensor(pixels)


def stored_size(path: Path) -> tuple[int, int]:
    """Height and width of a photo file, from its header alone; ``ValueError`` where it is not an image."""
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except Exception as error:  # see above
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> ValueError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return ValueError(f"photo={str(path)!r} cannot be read ({reason}); expected an image that Pillow reads.")
