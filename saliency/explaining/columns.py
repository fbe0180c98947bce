"""The parts of an explanation: one for every method, one for every score."""

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
    """A score: its name, and its class index and value (a probability) where it has them."""

    name: str
    class_index: int | None = None
    value: float | None = None

    def __str__(self) -> str:
        return self.name if self.value is None else f"{self.name} {self.value:.1%}"
