"""The embedded scenes as a data set: exact masks and boxes, nothing to download."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from saliency.engine.checks import check_type, is_positive_int, shown
from saliency.evaluation.cases import Annotation, Thing
from saliency.scenes import CLASSES, Scene, make_scene


class SceneSet:
    """The ``count`` scenes from ``seed`` on, named ``scene0``, ``scene1`` … after their seeds.

    >>> [annotation.name for annotation in SceneSet(2, 5).annotations]
    ['scene5', 'scene6']
    """

    def __init__(self, count: int = 100, seed: int = 0) -> None:
        if not is_positive_int(count):
            raise ValueError(f"scenes={shown(count)} is no number of scenes; a whole number of at least 1 is accepted.")
        check_type("seed", seed, int, "the seed of a scene")
        self.name, self.classes, self.seed = "scenes", CLASSES, seed
        self.source = ""  # a scene's masks come with its seed
        self.root: Path | None = None
        self.problems: tuple[str, ...] = ()
        self.annotations: Sequence[Annotation] = tuple(
            _annotation(number, make_scene(number)) for number in range(seed, seed + count)
        )

    def image(self, index: int) -> Tensor:
        """The image (3, 128, 128) in [0, 1] of an annotation."""
        return make_scene(self.seed + range(len(self.annotations))[index]).image


def _annotation(seed: int, scene: Scene) -> Annotation:
    things = tuple(Thing(item.label, item.box, partial(torch.clone, item.mask)) for item in scene.objects)
    height, width = scene.image.shape[1:]
    return Annotation(f"scene{seed}", (height, width), things)
