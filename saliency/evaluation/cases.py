"""An image's annotations, and its cases: one for every class in it."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

from saliency.engine.checks import check_count, check_type
from saliency.evaluation.metrics.localisation import boxes_to_mask
from saliency.evaluation.printing import describe_error
from saliency.images import check_path
from saliency.networks.preprocessing import Preprocessing, preprocess


class Instance(NamedTuple):
    """One object: its class, its box x0, y0, x1, y1, half-open in pixels, and what draws its mask (H, W), bool.

    Without a mask the box counts. ``difficult`` is VOC's flag for what is hard to see, ``crowd`` COCO's for groups.
    """

    label: int
    box: tuple[float, float, float, float]
    mask: Callable[[], Tensor] | None = None
    difficult: bool = False
    crowd: bool = False


class Annotation(NamedTuple):
    """An image's name, unique in its data set, its size (height, width), and its objects."""

    name: str
    size: tuple[int, int]
    instances: tuple[Instance, ...]


class Dataset(Protocol):
    """Annotated images. ``problems`` names every file and object that was left out, and says why.

    ``source`` is the sha256 of the file that the masks are drawn from, ``''`` where there is none.
    """

    name: str
    root: Path | None
    source: str
    classes: tuple[str, ...]
    annotations: Sequence[Annotation]
    problems: tuple[str, ...]

    def image(self, index: int) -> Tensor:
        """The image (3, H, W) in [0, 1] of an annotation; ``ValueError`` names a file that cannot be read."""


@dataclass(eq=False)
class Case:
    """An image, by its index in the data set, and a class in it, from the plan to the results.

    Reading adds the image (3, H, W), the network's ``input`` (C, h, w), and where the class is; explaining adds the
    network's output ``target``, and of every method its map (h, w) or error, and its seconds. Error ``""`` is of all.
    """

    index: int
    annotation: Annotation
    label: int
    difficult: bool = False
    maps: dict[str, Tensor] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    image: Tensor = field(init=False, repr=False)
    input: Tensor = field(init=False, repr=False)
    mask: Tensor = field(init=False, repr=False)
    boxes: Tensor = field(init=False, repr=False)
    target: int = field(init=False)

    @property
    def key(self) -> tuple[str, int]:
        """The name of the image, and the class."""
        return self.annotation.name, self.label

    def error_of(self, *methods: str) -> str | None:
        """The error of the case, or of its map by one of the methods."""
        return next((self.errors[name] for name in ("", *methods) if name in self.errors), None)


Images: TypeAlias = Sequence[Sequence[Case]]  # each image as its cases


def labels_of(annotation: Annotation) -> list[int]:
    """The classes that make a case of the image, in order; a class with difficult objects alone does not count.

    >>> labels_of(Annotation("a", (9, 9), (Instance(3, (0, 0, 2, 2)), Instance(1, (0, 0, 1, 1), difficult=True))))
    [3]
    """
    return sorted({instance.label for instance in annotation.instances if not instance.difficult})


def class_boxes(annotation: Annotation, label: int) -> Tensor:
    """The boxes (K, 4) of all objects of the class, difficult ones too."""
    boxes = [instance.box for instance in annotation.instances if instance.label == label]
    return torch.tensor(boxes, dtype=torch.float32, device="cpu").reshape(-1, 4)


def class_mask(annotation: Annotation, label: int) -> Tensor:
    """Where an object of the class is, (H, W) bool; difficult ones and crowds count as everywhere in the field."""
    mask = torch.zeros(annotation.size, dtype=torch.bool, device="cpu")
    for instance in annotation.instances:
        if instance.label == label:
            mask |= instance_mask(instance, annotation.size)
    return mask


def instance_mask(instance: Instance, size: tuple[int, int]) -> Tensor:
    """Where the object is, (H, W) bool: its mask, or else its box.

    For an object too small to cover a pixel, the pixels that its box touches.

    >>> instance_mask(Instance(0, (0.2, 0.1, 0.8, 0.9)), (1, 2))
    tensor([[ True, False]])
    """
    box = torch.tensor([instance.box], dtype=torch.float64, device="cpu")
    mask = instance.mask() if instance.mask else boxes_to_mask(box, size)
    return mask if mask.any() else boxes_to_mask(torch.cat((box[:, :2].floor(), box[:, 2:].ceil()), 1), size)


def is_difficult(annotation: Annotation, label: int, mask: Tensor | None = None) -> bool:
    """Is it a difficult case: do the objects of the class cover less than a quarter of a photo of several classes?

    The area is that of :func:`class_mask`, which is not drawn again if given as ``mask``: the union of the
    masks, or else boxes, with difficult objects and crowds.
    Zhang et al., Top-down Neural Attention by Excitation Backprop, IJCV 2018.

    >>> instances = (Instance(0, (0, 0, 4, 4)), Instance(1, (0, 0, 4, 3)))
    >>> [is_difficult(Annotation("a", (8, 8), instances), label) for label in (0, 1)]
    [False, True]
    """
    if all(instance.label == label for instance in annotation.instances):
        return False
    mask = class_mask(annotation, label) if mask is None else mask
    return 4 * int(mask.sum()) < mask.numel()


def load_cases(dataset: Dataset, preprocessing: Preprocessing, planned: Sequence[Case]) -> list[Case]:
    """The planned cases of an image, each a new object with the data read, or else the error."""
    index, annotation = planned[0].index, planned[0].annotation
    cases = [Case(index, annotation, case.label) for case in planned]
    try:
        image = dataset.image(index)
        if image.shape[1:] != annotation.size:
            raise ValueError(
                f"image={annotation.name!r} is {tuple(image.shape[1:])}, not {tuple(annotation.size)} as annotated; "
                "expected an image of its annotation's (height, width)."
            )
        input = preprocess(image, preprocessing)
        for case in cases:
            case.image, case.input, case.mask = image, input, class_mask(annotation, case.label)
            case.boxes = class_boxes(annotation, case.label)
            case.difficult = is_difficult(annotation, case.label, case.mask)
    except Exception as error:
        for case in cases:
            case.errors[""] = describe_error(error)
            with suppress(Exception):
                case.difficult = is_difficult(annotation, case.label)
    return cases


def outputs_of(
    classes: Sequence[str], outputs: int, class_map: Mapping[str, Sequence[int]] | None = None
) -> list[tuple[int, ...]]:
    """The outputs of a network that correspond to each class of a data set; ``()`` where there is none.

    Without a ``class_map`` the classes are the network's own ``outputs``, one by one. Raises ``ValueError`` where the
    numbers differ then, and for a map with an unknown class or an output that the network does not have.

    >>> outputs_of(["cat", "mouse", "tree"], 1000, {"cat": [281, 282], "mouse": [673]})
    [(281, 282), (673,), ()]
    """
    check_type("classes", classes, (list, tuple), "the names of the classes")
    check_count("outputs", outputs)
    if class_map is None:
        if len(classes) != outputs:
            raise ValueError(
                f"class_map=None takes {len(classes)} classes of the data set for the network's {outputs} outputs; "
                "expected a map from class names to lists of outputs."
            )
        return [(index,) for index in range(outputs)]
    check_type("class_map", class_map, Mapping, "lists of outputs by the names of the classes")
    for name, indices in class_map.items():
        check_type("class_map", indices, (list, tuple), "lists of outputs by the names of the classes")
        if name not in classes:
            raise ValueError(f"class_map={name!r} is not a class of the data set; expected one of {list(classes)}.")
        if not all(isinstance(index, int) and 0 <= index < outputs for index in indices):
            raise ValueError(
                f"class_map={list(indices)!r} of {name!r} are not outputs of the network; expected 0 to {outputs - 1}."
            )
    return [tuple(class_map.get(name, ())) for name in classes]


def left_out(dataset: Dataset, outputs: Sequence[Sequence[int]]) -> list[str]:
    """What the benchmark leaves out, and why: problems of the data set, and classes without an output."""
    classes = zip(dataset.classes, outputs, strict=True)
    return [*dataset.problems, *(f"class {name!r} has no output" for name, own in classes if not own)]


def read_class_map(path: str | Path) -> dict[str, list[int]]:
    """Read a class map for :func:`outputs_of` from a JSON file, ``{"cat": [281, 282]}``."""
    check_path("path", path)
    try:
        found = json.loads(Path(path).read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"class_map={str(path)!r} cannot be read ({error}); expected a JSON file.") from error
    if not isinstance(found, dict) or not all(isinstance(indices, list) for indices in found.values()):
        raise ValueError(f"class_map={str(path)!r} is not a class map; expected class names with lists of outputs.")
    return found


def describe(dataset: Dataset) -> dict[str, object]:
    """What identifies a data set, as JSON: name, root, classes, numbers of images and instances, and a digest.

    The digest is a sha256 of all names, sizes and objects, and of the file of the masks, but not of the photos.
    """
    digest = hashlib.sha256(dataset.source.encode())
    instances = 0
    for annotation in dataset.annotations:
        objects = [(one.label, one.box, one.difficult, one.crowd) for one in annotation.instances]
        digest.update(repr((annotation.name, annotation.size, objects)).encode())
        instances += len(objects)
    return {
        "name": dataset.name,
        "root": None if dataset.root is None else str(Path(dataset.root).resolve()),
        "classes": list(dataset.classes),
        "images": len(dataset.annotations),
        "instances": instances,
        "annotations": digest.hexdigest(),
    }
