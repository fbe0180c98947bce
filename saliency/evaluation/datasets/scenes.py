"""The embedded scenes as a data set: exact masks and boxes, nothing to download."""

from functools import partial

import torch
from torch import Tensor

from saliency.engine.checks import check_type, is_positive_int, shown
from saliency.evaluation.cases import Instance
from saliency.evaluation.datasets.photos import Entry, Listing
from saliency.scenes import CLASSES, make_scene


def scene_entries(scenes: int = 100, seed: int = 0) -> Listing:
    """The ``scenes`` scenes from ``seed`` on, named ``scene0``, ``scene1`` … after their seeds."""
    if not is_positive_int(scenes):
        raise ValueError(f"scenes={shown(scenes)} is not a number of scenes; expected a whole number of at least 1.")
    check_type("seed", seed, int, "the seed of a scene")
    return Listing(CLASSES, map(_entry, range(seed, seed + scenes)))


def draw_scene(seed: int) -> Tensor:
    """The image (3, 128, 128) in [0, 1] of a scene."""
    return make_scene(seed).image


def _entry(seed: int) -> Entry:
    scene = make_scene(seed)
    instances = tuple(Instance(item.label, item.box, partial(torch.clone, item.mask)) for item in scene.objects)
    height, width = scene.image.shape[1:]
    return Entry(f"scene{seed}", seed, (height, width), instances)
