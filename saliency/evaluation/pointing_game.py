"""TorchRay's pointing game, class by class: for your own loops over images, classes and methods."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from saliency.engine.checks import check_count, check_flag, check_tensor, describe, is_int, is_number, shown
from saliency.evaluation.cases import Annotation, Instance, class_mask, is_difficult, labels_of
from saliency.evaluation.datasets.segmentation import draw_mask
from saliency.evaluation.metrics.localisation import points_hit
from saliency.networks.class_names import VOC_CLASSES

HIT, SKIPPED, MISS = 1, 0, -1
Record: TypeAlias = Mapping[str, Any]  # of VOC's or COCO's files
Label: TypeAlias = Annotation | Record | Sequence[Record]


class PointingGame:
    """The accuracy of each of ``num_classes`` classes, for points with a ``tolerance`` in pixels.

    ``hits`` and ``misses`` are the counts, (num_classes,). Other than TorchRay's, as in the paper: the disc around a
    point is closed, so a distance of exactly the tolerance is a hit; and a class that was never played has no accuracy
    (NaN, TorchRay: 0 %), and no part in the mean.
    Zhang et al., Top-down Neural Attention by Excitation Backprop, IJCV 2018.

    >>> game, mask = PointingGame(num_classes=3, tolerance=1), torch.eye(4) > 0
    >>> for point in ((1, 1), (3, 2), (3, 0)):
    ...     game.aggregate(game.evaluate(mask, point), class_id=2)
    >>> game.hits.tolist(), game.misses.tolist(), game.class_accuracies[2]
    ([0.0, 0.0, 2.0], [0.0, 0.0, 1.0], tensor(0.6667, dtype=torch.float64))
    """

    def __init__(self, num_classes: int, tolerance: float = 15) -> None:
        check_count("num_classes", num_classes)
        if not is_number(tolerance) or tolerance < 0:
            raise ValueError(f"tolerance={shown(tolerance)} is not a radius in pixels; expected a number >= 0.")
        self.num_classes, self.tolerance = num_classes, tolerance
        self.reset()

    def reset(self) -> None:
        """Set all counts to 0."""
        self.hits, self.misses = (torch.zeros(self.num_classes, dtype=torch.float64, device="cpu") for _ in range(2))

    def evaluate(self, mask: Tensor, point: Sequence[float] | Tensor) -> int:
        """1 if the ``point`` (x, y) hits the object, -1 if not, and 0 where the ``mask`` (H, W) has no pixel."""
        check_tensor("mask", mask)
        if mask.ndim != 2:
            raise ValueError(f"mask={describe(mask)} is not an image's; expected (H, W).")
        numbers = point.tolist() if isinstance(point, Tensor) else point
        if not isinstance(numbers, (list, tuple)) or len(numbers) != 2 or not all(map(is_number, numbers)):
            raise ValueError(f"point={shown(point)} is not a pixel; expected its x and y.")
        mask = mask != 0
        if not mask.any():
            return SKIPPED
        hit = points_hit(torch.tensor([list(numbers)], device=mask.device), mask[None], self.tolerance)
        return HIT if hit.item() else MISS

    def aggregate(self, hit: int, class_id: int) -> None:
        """Count a result of :meth:`evaluate` for a class; 0 is not counted."""
        if not is_int(class_id) or not 0 <= class_id < self.num_classes:
            raise ValueError(f"class_id={shown(class_id)} is not a class; expected 0 to {self.num_classes - 1}.")
        if not is_int(hit) or hit not in (HIT, SKIPPED, MISS):
            raise ValueError(f"hit={shown(hit)} is not a result; expected 1, -1 or 0.")
        self.hits[class_id] += hit == HIT
        self.misses[class_id] += hit == MISS

    @property
    def class_accuracies(self) -> Tensor:
        """The accuracy (num_classes,) of each class in [0, 1]; NaN for a class that was never played."""
        return self.hits / (self.hits + self.misses)

    @property
    def mean_class_accuracy(self) -> Tensor:
        """The mean over the classes that were played, in [0, 1]; NaN if none was."""
        return self.class_accuracies.nanmean()

    @property
    def accuracy(self) -> Tensor:
        """:attr:`mean_class_accuracy`, by TorchRay's name."""
        return self.mean_class_accuracy

    def __str__(self) -> str:
        played = [(label, share) for label, share in enumerate(self.class_accuracies.tolist()) if share == share]
        each = " ".join(f"{label}:{100 * share:4.1f}%" for label, share in played)
        return f"{100 * self.mean_class_accuracy.item():4.1f}% [{each}]"


class PointingGameBenchmark(PointingGame):
    """The pointing game on a ``dataset``, whose labels say where the classes are.

    The data set is torchvision's or TorchRay's ``VOCDetection`` or ``CocoDetection``, or one of ``load_dataset``, whose
    labels are its ``annotations``. The number of a class is its place in VOC's list, among COCO's ids, or in
    ``dataset.classes``. With ``difficult=True`` only cases count whose objects cover less than a quarter of an image of
    several classes: as defined in the paper, where TorchRay reads a list that its authors published.
    """

    def __init__(self, dataset: Any, tolerance: float = 15, difficult: bool = False) -> None:
        check_flag("difficult", difficult)
        index = getattr(dataset, "coco", None)
        if index is None and not hasattr(dataset, "annotations"):
            raise ValueError(
                f"dataset={shown(dataset)} has no annotations; expected VOCDetection, CocoDetection or load_dataset's."
            )
        classes = sorted(index.cats) if index is not None else getattr(dataset, "classes", VOC_CLASSES)
        super().__init__(len(classes), tolerance)
        self.dataset, self.difficult = dataset, difficult
        self._labels = {name: number for number, name in enumerate(classes)}

    def evaluate(  # type: ignore[override]  # as TorchRay's, whose arguments are others than its parent's
        self, label: Label, class_id: int, point: Sequence[float] | Tensor
    ) -> int:
        """1 if the ``point`` (x, y) hits an object of the class in the image of the ``label``, -1 if not.

        0 where that is not a case: no object of the class, or only difficult ones by VOC's flag; or an easy case where
        difficult ones are played. ``aggregate`` does not count these.
        """
        annotation = self._read(label)
        if class_id not in labels_of(annotation):
            return SKIPPED
        mask = class_mask(annotation, class_id)
        if self.difficult and not is_difficult(annotation, class_id, mask):
            return SKIPPED
        return super().evaluate(mask, point)

    def _read(self, label: Label) -> Annotation:
        """The contents of an image, by its label."""
        try:
            if isinstance(label, Annotation):
                return label
            return self._read_voc(label) if isinstance(label, Mapping) else self._read_coco(label)
        except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
            raise ValueError(
                f"label={shown(label)} cannot be read ({type(error).__name__}: {error}); expected one of the data set."
            ) from error

    def _read_voc(self, label: Record) -> Annotation:
        described = label["annotation"]
        objects, instances = described["object"], []
        for found in objects if isinstance(objects, list) else [objects]:
            x0, y0, x1, y1 = (float(found["bndbox"][edge]) for edge in ("xmin", "ymin", "xmax", "ymax"))
            box = (x0 - 1, y0 - 1, x1, y1)  # VOC's pixels count from 1, and the last one is inside
            instances.append(Instance(self._labels[found["name"]], box, difficult=str(found.get("difficult")) == "1"))
        size = int(described["size"]["height"]), int(described["size"]["width"])
        return Annotation(described["filename"], size, tuple(instances))

    def _read_coco(self, label: Sequence[Record]) -> Annotation:
        if not label:
            return Annotation("", (1, 1), ())
        (image,) = self.dataset.coco.loadImgs(label[0]["image_id"])
        size = image["height"], image["width"]
        instances = []
        for found in label:
            x, y, width, height = found["bbox"]
            outline = found.get("segmentation")
            mask = partial(draw_mask, outline, size) if outline else None
            instances.append(Instance(self._labels[found["category_id"]], (x, y, x + width, y + height), mask))
        return Annotation(image["file_name"], size, tuple(instances))
