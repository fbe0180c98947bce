"""ImageNet's localisation task, in the layout of its challenge on Kaggle."""

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path

from saliency.evaluation.cases import Instance
from saliency.evaluation.datasets.photos import Entry, Listing, each_photo
from saliency.evaluation.datasets.voc import read_xml

SYNSETS = "LOC_synset_mapping.txt"
FIRST = 0  # boxes count pixels from 0, both ends included: a photo of width 500 has them from 0 to 499


def imagenet_entries(root: Path, split: str = "val") -> Listing:
    """The photos of ``root/ILSVRC``; the order of ``LOC_synset_mapping.txt`` is that of the networks' outputs.

    The XML files say what is in a photo, and ``LOC_<split>_solution.csv`` has to agree; of two that differ neither
    counts. A photo may lack one of them. Of the splits only ``val`` has its photos in one folder.
    """
    if split != "val":
        raise ValueError(f"split={split!r} is not in one folder; expected 'val'.")
    synsets = read_synsets(root / SYNSETS)
    labels = {synset: label for label, synset in enumerate(synsets)}
    return Listing(tuple(synsets.values()), _photos(root, split, labels))


def read_synsets(path: Path) -> dict[str, str]:
    """The classes' names by WordNet id, in the file's order."""
    try:
        lines = [line.split(maxsplit=1) for line in path.read_text("utf-8").splitlines() if line.strip()]
        return {synset: names.strip() for synset, names in lines}
    except (OSError, ValueError) as error:
        raise ValueError(
            f"root={str(path.parent)!r} has no list of classes ({error}); expected a folder with {path.name}."
        ) from error


def _photos(root: Path, split: str, labels: Mapping[str, int]) -> Iterator[Entry | str]:
    listing, solution = root / f"ILSVRC/ImageSets/CLS-LOC/{split}.txt", root / f"LOC_{split}_solution.csv"
    rows = _rows(solution)
    answers = dict(rows)
    lines = _read(listing).splitlines() if listing.is_file() else []
    names = [line.split()[0] for line in lines if line.strip()]
    listed = set(names)

    def read(name: str) -> Iterator[Entry | str]:
        image = root / f"ILSVRC/Data/CLS-LOC/{split}/{name}.JPEG"
        xml = root / f"ILSVRC/Annotations/CLS-LOC/{split}/{name}.xml"
        if name not in answers:
            return read_xml(xml, image, labels, FIRST)
        return _answered(answers[name], xml, image, labels)

    yield from each_photo([*names, *(name for name, _ in rows if name not in listed)], read)


def _rows(solution: Path) -> list[tuple[str, str]]:
    """The photos' names and contents, from the file of solutions, if there is one."""
    if not solution.is_file():
        return []
    try:
        rows = list(csv.reader(io.StringIO(_read(solution), newline="")))[1:]
    except csv.Error as error:
        raise ValueError(f"root has a broken {solution} ({error}); expected a file of the challenge.") from error
    return [(row[0], row[1] if len(row) > 1 else "") for row in rows if row]


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except (OSError, ValueError) as error:
        raise ValueError(f"root has a broken {path} ({error}); expected a file of the challenge.") from error


def _answered(answer: str, xml: Path, image: Path, labels: Mapping[str, int]) -> Iterator[Entry | str]:
    """Yield a photo with the objects of its solution; its XML file, where there is one, has to agree."""
    try:
        instances = _instances(answer, labels)
    except ValueError as error:
        yield f"{image.stem}: the solution {answer!r} {error}"
        return
    if not xml.is_file():
        yield Entry(image.stem, image, None, instances)
        return
    for entry in read_xml(xml, image, labels, FIRST):
        if isinstance(entry, Entry) and _places(entry.instances) != _places(instances):
            yield f"{image.stem}: {xml} and the solution {answer!r} differ"
        else:
            yield entry


def _instances(answer: str, labels: Mapping[str, int]) -> tuple[Instance, ...]:
    """The objects in ``n02112137 52 61 199 215 …``: class and box of each, again and again."""
    words = answer.split()
    if len(words) % 5 or not words:
        raise ValueError("is not a list of classes and boxes")
    instances = []
    for start in range(0, len(words), 5):
        synset, *corners = words[start : start + 5]
        if synset not in labels:
            raise ValueError(f"has the unknown class {synset!r}")
        x0, y0, x1, y1 = map(int, corners)
        instances.append(Instance(labels[synset], (x0 - FIRST, y0 - FIRST, x1 - FIRST + 1, y1 - FIRST + 1)))
    return tuple(instances)


def _places(instances: tuple[Instance, ...]) -> list[tuple[int, tuple[float, ...]]]:
    return sorted((instance.label, instance.box) for instance in instances)
