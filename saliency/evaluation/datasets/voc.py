"""PASCAL VOC 2007: an XML file of boxes for each photo."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from xml.etree.ElementTree import Element

from saliency.evaluation.cases import Instance
from saliency.evaluation.datasets.photos import Entry, Listing, each_photo
from saliency.networks.class_names import VOC_CLASSES


def voc_entries(root: Path, split: str = "test") -> Listing:
    """The photos listed in ``root/VOCdevkit/VOC2007/ImageSets/Main/<split>.txt``, with boxes for masks."""
    from torchvision.datasets import VOCDetection

    try:
        listed = VOCDetection(str(root), year="2007", image_set=split)
    except (RuntimeError, ValueError, OSError) as error:
        raise ValueError(
            f"root={str(root)!r} is not a VOC 2007 folder ({error}); "
            f"expected a folder with VOCdevkit/VOC2007/ImageSets/Main/{split}.txt."
        ) from error
    labels = {class_name: label for label, class_name in enumerate(VOC_CLASSES)}
    files = zip(map(Path, listed.images), map(Path, listed.annotations), strict=True)
    entries = each_photo(files, lambda pair: read_xml(pair[1], pair[0], labels, first=1))
    return Listing(VOC_CLASSES, entries)


def read_xml(path: Path, image: Path, labels: Mapping[str, int], first: int) -> Iterator[Entry | str]:
    """Yield the photo that an XML file describes, after a problem (str) for each invalid object.

    Boxes are inclusive there, and the number of the first pixel is ``first``. A broken file is one problem.
    """
    from defusedxml import ElementTree

    try:
        root = ElementTree.parse(path).getroot()
    except Exception as error:  # besides malformed XML: unknown encodings, entities, names that no file can have
        yield f"{image.stem}: the annotation {path} cannot be read ({' '.join(str(error).split())})"
        return
    described = Path(root.findtext("filename") or image.name).stem
    if described != image.stem:
        yield f"{image.stem}: the annotation {path} is of another photo, {described!r}"
        return
    sides = [_number(root, f"size/{side}") for side in ("height", "width")]
    size = (int(sides[0]), int(sides[1])) if all(1 <= side < math.inf for side in sides) else None
    found = [_instance(element, labels, first) for element in root.findall("object")]
    for number, problem in enumerate(found, 1):
        if isinstance(problem, str):
            yield f"{image.stem}: object {number} {problem}"
    yield Entry(image.stem, image, size, tuple(instance for instance in found if isinstance(instance, Instance)))


def _instance(element: Element, labels: Mapping[str, int], first: int) -> Instance | str:
    """An object with its box made half-open, or the problem with it."""
    name = (element.findtext("name") or "").strip()
    if name not in labels:
        return f"is of the unknown class {name!r}"
    x0, y0, x1, y1 = (_number(element, f"bndbox/{corner}") - first for corner in ("xmin", "ymin", "xmax", "ymax"))
    difficult = (element.findtext("difficult") or "0").strip() == "1"
    return Instance(labels[name], (x0, y0, x1 + 1, y1 + 1), difficult=difficult)


def _number(element: Element, path: str) -> float:
    """The number there, or NaN."""
    try:
        return float(element.findtext(path, "nan"))
    except ValueError:
        return math.nan
