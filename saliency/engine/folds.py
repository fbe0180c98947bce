"""Folds: how the gradients along one path become one tensor."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Steps(NamedTuple):
    """Steps of one sample's path: activations and gradients (T, ...), and weights (T, 1, ...).

    ``moved`` (T, ...), if the fold needs it, is the activation at the end of each step's path minus that at its start.
    """

    x: Tensor
    gradient: Tensor
    weight: Tensor
    moved: Tensor | None

    def joined(self, others: "Steps") -> "Steps":
        """These steps followed by the others."""
        pairs = zip(self, others, strict=True)
        return Steps._make(None if a is None or b is None else torch.cat([a, b]) for a, b in pairs)

    def last(self, count: int) -> "Steps | None":
        """Copies of the last of these steps."""
        if not count:
            return None
        return Steps._make(None if tensor is None else tensor[-count:].clone() for tensor in self)


@dataclass(frozen=True)
class Fold:
    """How the steps of one path become one tensor.

    ``overlap``: 0, a sum over steps, accumulated chunk by chunk; 1, each step needs its successor; None, all at once.
    The result is an ``attribution``, or else a gradient, which replaces ``x.grad``.
    """

    combine: Callable[[Steps], Tensor]
    overlap: int | None = 0
    attribution: bool = False
    moves: bool = False


MEAN = Fold(lambda steps: (steps.weight * steps.gradient).sum(0))
# The means of g, g^2 and g^3, which become x.grad, x.grad.grad and x.grad.grad.grad.
MOMENTS = Fold(
    lambda steps: torch.stack([(steps.weight * steps.gradient**power).sum(0) for power in (1, 2, 3)], -1),
)
SQUARED = Fold(lambda steps: (steps.weight * steps.gradient.square()).sum(0), attribution=True)
VARIANCE = Fold(lambda steps: steps.gradient.var(0, correction=0), overlap=None, attribution=True)
# The gradient at the start of each step, times the change of the activation over the step.
CONDUCTANCE = Fold(lambda steps: (steps.gradient[:-1] * steps.x.diff(dim=0)).sum(0), overlap=1, attribution=True)
SHAP = Fold(
    lambda steps: (steps.weight * steps.gradient * (1 if steps.moved is None else steps.moved)).sum(0),
    attribution=True,
    moves=True,
)
