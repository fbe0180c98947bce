"""The plan of a run: its cases, and the batches that they are computed in."""

from collections.abc import Collection, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from saliency.evaluation.cases import Annotation, labels_of
from saliency.evaluation.networks.models import Recipe
from saliency.evaluation.networks.preprocessing import input_size


class Case(NamedTuple):
    """An image, by its index in the data set, and a class in it."""

    image: int
    label: int


class Batch(NamedTuple):
    """Images of one size to the network, and as many classes of each: what is computed at once."""

    images: tuple[int, ...]
    labels: tuple[tuple[int, ...], ...]

    @property
    def cases(self) -> list[Case]:
        """The cases of the batch, those of an image next to each other."""
        return [Case(image, label) for image, own in zip(self.images, self.labels, strict=True) for label in own]


def plan_batches(
    annotations: Sequence[Annotation],
    recipe: Recipe,
    batch_size: int = 8,
    limit: int | None = None,
    without: Collection[int] = (),
) -> list[Batch]:
    """The batches of the first ``limit`` cases, of at most ``batch_size`` images each, ``without`` some classes.

    They follow from the arguments alone, so a result does not hang on which process computes it, or when.
    ``ValueError`` for a limit or batch size below 1.

    >>> from saliency.evaluation.cases import Thing
    >>> thing = Thing(3, (0, 0, 2, 2))
    >>> square, wide = Annotation("a", (9, 9), (thing,)), Annotation("b", (9, 12), (thing,))
    >>> recipe = Recipe(9, 1, False, (), (), ())
    >>> [batch.images for batch in plan_batches([square, wide, square], recipe)]
    [(0, 2), (1,)]
    """
    for argument, value in (("batch_size", batch_size), ("limit", limit)):
        if value is not None and value < 1:
            raise ValueError(f"{argument}={value!r} is no number of cases; a whole number >= 1 is accepted.")
    sizes: dict[tuple[int, int], tuple[int, int]] = {}
    filling: dict[tuple[tuple[int, int], int], list[tuple[int, tuple[int, ...]]]] = {}
    full: list[Batch] = []
    for image, labels in _first(annotations, limit, without):
        size = annotations[image].size
        if size not in sizes:
            sizes[size] = input_size(size, recipe)
        batch = filling.setdefault((sizes[size], len(labels)), [])
        batch.append((image, labels))
        if len(batch) == batch_size:
            full.append(_closed(batch))
            batch.clear()
    return full + [_closed(batch) for batch in filling.values() if batch]


def _first(
    annotations: Sequence[Annotation], limit: int | None, without: Collection[int]
) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Every image with the classes that are wanted of it."""
    cases = (
        Case(image, label)
        for image, entry in enumerate(annotations)
        for label in labels_of(entry)
        if label not in without
    )
    wanted: dict[int, list[int]] = {}
    for case in islice(cases, limit):
        wanted.setdefault(case.image, []).append(case.label)
    return ((image, tuple(labels)) for image, labels in wanted.items())


def _closed(batch: list[tuple[int, tuple[int, ...]]]) -> Batch:
    images, labels = zip(*batch, strict=True)
    return Batch(images, labels)
