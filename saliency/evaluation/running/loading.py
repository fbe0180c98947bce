"""What is read of an image before it is computed on, in threads that are a few batches ahead."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

from torch import Tensor

from saliency.evaluation.cases import Dataset, class_boxes, class_mask, is_difficult
from saliency.evaluation.networks.models import Recipe
from saliency.evaluation.networks.preprocessing import preprocess
from saliency.evaluation.running.plan import Batch

Loaded = TypeVar("Loaded")

AHEAD = 2  # batches
READERS = 4  # threads


class Sample(NamedTuple):
    """An image as it is, as the network takes it (C, h, w), and for each wanted class what it is to be found by."""

    image: Tensor
    input: Tensor
    masks: list[Tensor]
    boxes: list[Tensor]
    difficult: list[bool]


def load_sample(dataset: Dataset, recipe: Recipe, image: int, labels: tuple[int, ...]) -> Sample:
    """Read an image and draw its masks. Raises what reading raises, and ``ValueError`` where it has another size."""
    annotation = dataset.annotations[image]
    pixels = dataset.image(image)
    if pixels.shape[1:] != annotation.size:
        raise ValueError(
            f"image={annotation.name!r} is {tuple(pixels.shape[1:])}, not {tuple(annotation.size)} as annotated; "
            "an image of its annotation's (height, width) is accepted."
        )
    masks = [class_mask(annotation, label) for label in labels]
    return Sample(
        pixels,
        preprocess(pixels, recipe),
        masks,
        [class_boxes(annotation, label) for label in labels],
        [is_difficult(annotation, label, mask) for label, mask in zip(labels, masks, strict=True)],
    )


def load_batches(
    batches: Iterable[Batch], load: Callable[[int, tuple[int, ...]], Loaded]
) -> Generator[tuple[Batch, list[Future[Loaded]]], None, None]:
    """Yield every batch with a future of ``load(image, labels)`` for each image; the next are loaded meanwhile."""
    pool = ThreadPoolExecutor(READERS, thread_name_prefix="load")
    waiting: deque[tuple[Batch, list[Future[Loaded]]]] = deque()
    try:
        for batch in batches:
            pairs = zip(batch.images, batch.labels, strict=True)
            waiting.append((batch, [pool.submit(load, image, labels) for image, labels in pairs]))
            if len(waiting) > AHEAD:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
