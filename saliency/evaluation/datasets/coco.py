"""COCO, and folders of photos with one JSON file in its format."""

import contextlib
import hashlib
import io
import json
import reprlib
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from saliency.evaluation.cases import Instance
from saliency.evaluation.datasets.photos import Box, Entry, Listing, each_photo, stored_size
from saliency.evaluation.datasets.segmentation import draw_mask, segmentation_problem
from saliency.images import is_file
from saliency.networks.class_names import COCO_CLASSES

FARTHEST = 1e12  # pixels
Record: TypeAlias = Mapping[str, Any]  # an object of the JSON file: anything may stand in it


def coco_entries(root: Path, split: str, annotations: str | Path | None = None) -> Listing:
    """The photos of ``root/<split>`` and the 80 classes of ``root/annotations/instances_<split>.json``."""
    file = Path(annotations or root / "annotations" / f"instances_{split}.json")
    index = read_index(file)
    order = {class_name: label for label, class_name in enumerate(COCO_CLASSES)}
    labels = {key: order[category["name"]] for key, category in index.cats.items() if category["name"] in order}
    return Listing(COCO_CLASSES, _photos(index, root / split, labels), digest(file))


def folder_entries(root: Path, split: str = "", annotations: str | Path | None = None) -> Listing:
    """The photos of a folder and one JSON file; the classes are its categories, by ascending id.

    The photos lie in ``root/<split>``, or else in ``root`` or the folder in it that has most of them.
    """
    file = Path(annotations) if annotations else find_json(root)
    index = read_index(file)
    labels = {key: label for label, key in enumerate(sorted(index.cats))}
    classes = tuple(str(index.cats[key]["name"]) for key in labels)
    folder = root / split if split else _photo_folder(root, [image.get("file_name") for image in index.imgs.values()])
    return Listing(classes, _photos(index, folder, labels), digest(file))


def read_index(file: Path) -> Any:
    """The annotations of a JSON file by image, as torchvision's ``CocoDetection`` holds them.

    Raises ``ValueError`` where the file is missing, truncated or in another format.
    """
    from torchvision.datasets import CocoDetection

    if not file.is_file():
        raise ValueError(f"annotations={str(file)!r} is not a file; expected a JSON file in COCO's format.")
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports its progress there
            index = CocoDetection(str(file.parent), str(file)).coco
        sorted(index.cats)
        sorted(index.imgs)
        named = all(isinstance(category["name"], str) for category in index.cats.values())
        if not (index.imgs and index.anns and index.cats and named):
            raise ValueError("it lacks images, annotations or the names of categories")
    except Exception as error:  # a file of another format is indexed as far as that goes
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ValueError(
            f"annotations={str(file)!r} cannot be read ({reason}); expected a JSON file in COCO's format."
        ) from error
    return index


def find_json(root: Path) -> Path:
    """The one JSON file in COCO's format in ``root`` or ``root/annotations``; ``ValueError`` for none or several."""
    found = [path for folder in (root, root / "annotations") for path in sorted(folder.glob("*.json"))]
    if len(found) > 1:
        found = [path for path in found if _is_coco(path)]
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise ValueError(
            f"annotations=None does not say which JSON file of {str(root)!r} to read ({names}); expected its path."
        )
    return found[0]


def _is_coco(path: Path) -> bool:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and {"images", "annotations", "categories"} <= content.keys()


def _photo_folder(root: Path, names: Sequence[object]) -> Path:
    """``root``, or the folder in it that holds more of the files."""
    folders = [root, *sorted(path for path in root.iterdir() if path.is_dir())]
    return max(folders, key=lambda folder: sum(is_file(folder / str(name)) for name in names))


def digest(path: Path) -> str:
    """The sha256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _photos(index: Any, folder: Path, labels: Mapping[Hashable, int]) -> Iterator[Entry | str]:
    """The photos by ascending id, and the problems of the index as a whole."""
    for key, times in Counter(image["id"] for image in index.dataset["images"]).items():
        if times > 1:
            yield f"image id {key}: it is listed {times} times; the last time counts"
    for entry in index.dataset["annotations"]:
        if entry["image_id"] not in index.imgs:
            yield f"annotation {entry['id']}: its image id {entry['image_id']} is not listed"

    def read(key: Hashable) -> Iterator[Entry | str]:
        return _photo(index.imgs[key], index.imgToAnns.get(key, ()), folder, labels, index.cats)

    yield from each_photo(sorted(index.imgs), read)


def _photo(
    image: Record,
    entries: Sequence[Record],
    folder: Path,
    labels: Mapping[Hashable, int],
    categories: Mapping[Hashable, Record],
) -> Iterator[Entry | str]:
    name = image.get("file_name")
    if not isinstance(name, str) or not name:
        yield f"image id {image['id']}: it has no file_name"
        return
    try:
        size = _size(image, folder / name)
    except ValueError as error:
        yield f"{name}: {error}"
        return
    instances = []
    for entry in entries:
        problem = _problem(entry, size, labels, categories)
        if problem:
            yield f"{name}: annotation {entry['id']} {problem}"
        else:
            instances.append(_instance(entry, size, labels[entry["category_id"]]))
    yield Entry(name, folder / name, size, tuple(instances))


def _size(image: Record, path: Path) -> tuple[int, int]:
    """The height and width of a photo as annotated, or else of its file."""
    height, width = image.get("height"), image.get("width")
    if isinstance(height, int) and isinstance(width, int) and min(height, width) > 0:
        return height, width
    return stored_size(path)


def _problem(
    entry: Record, size: tuple[int, int], labels: Mapping[Hashable, int], categories: Mapping[Hashable, Record]
) -> str:
    category, box = entry["category_id"], entry.get("bbox")
    if category not in labels:
        name = categories[category]["name"] if category in categories else None
        return f"is of the unknown category {category!r}" + (f", {name!r}" if name else "")
    if not isinstance(box, list) or len(box) != 4 or not all(_is_pixels(number) for number in box):
        return f"has the bbox {reprlib.repr(box)}, not x, y, width, height"
    return segmentation_problem(entry.get("segmentation"), size)


def _is_pixels(value: object) -> bool:
    return isinstance(value, (int, float)) and not abs(value) > FARTHEST


def _instance(entry: Record, size: tuple[int, int], label: int) -> Instance:
    x, y, width, height = entry["bbox"]
    box: Box = (x, y, x + width, y + height)
    segmentation = entry.get("segmentation")
    mask = partial(draw_mask, segmentation, size) if segmentation else None
    return Instance(label, box, mask, crowd=bool(entry.get("iscrowd")))
