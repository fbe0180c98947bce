"""Columns: what an explanation holds of every method, and of every score that is explained."""

from typing import NamedTuple

from torch import Tensor


class Column(NamedTuple):
    """The maps (1, K, h, w) of a method at a layer, raw scale, and the picture (3, H, W) that they lie on."""

    name: str
    method: str
    layer: str | None
    maps: Tensor
    picture: Tensor


class Score(NamedTuple):
    """A score: what it is called, the index of its class and its value, a probability, where it has them."""

    name: str
    class_index: int | None = None
    value: float | None = None

    def __str__(self) -> str:
        return self.name if self.value is None else f"{self.name} {self.value:.1%}"
