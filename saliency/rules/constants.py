"""Constants: what of the relevance goes to them where they are added or put beside what depends on the image."""

import torch
import torch.nn.functional as F
from torch import Tensor

from saliency.engine.kinds import DIFFERENCES, JOINS, SUMS
from saliency.engine.operations import Function, Operation, Row, Rule, with_exported


def enter_constants(op: Operation, gradient: Tensor, found: list[Tensor | None]) -> list[Tensor | None]:
    """What was found for an operation that adds; what is left goes to numbers, tokens, positions, masks."""
    if op.ledger is not None:
        op.ledger.add(bias=gradient * op.result)
        for x, dx, origin in zip(op.tensors, found, op.standing.origins, strict=True):
            if origin.depends and dx is not None:
                op.ledger.add(bias=-x * dx)
    return found


# For a table that a ledger is told of: no map is different with it.
ADDING: dict[Function, Row] = dict.fromkeys(
    SUMS
    + DIFFERENCES
    + JOINS
    + with_exported(
        *(torch.where, Tensor.where, Tensor.masked_fill, Tensor.masked_fill_, F.pad),
    ),
    Rule(lambda op, gradient: enter_constants(op, gradient, op.derivative(gradient))),
)
