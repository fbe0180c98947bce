"""Constants: the relevance that they get when added to, or concatenated with, what depends on the image."""

import torch
import torch.nn.functional as F
from torch import Tensor

from saliency.engine.kinds import DIFFERENCES, SUMS
from saliency.engine.operations import Function, Operation, Row, Rule, with_exported


def enter_constants(op: Operation, gradient: Tensor, found: list[Tensor | None]) -> list[Tensor | None]:
    """Return the gradients found for an operation that adds, and enter the rest: it goes to numbers, tokens, masks."""
    if op.ledger is not None:
        op.ledger.add(bias=gradient * op.result)
        for x, dx, origin in zip(op.tensors, found, op.standing.origins, strict=True):
            if origin.depends and dx is not None:
                op.ledger.add(bias=-x * dx)
    return found


# For tables with a ledger; it does not change any map.
ADDING: dict[Function, Row] = dict.fromkeys(
    SUMS
    + DIFFERENCES
    + with_exported(
        *(torch.cat, torch.concat, torch.stack, torch.hstack, torch.vstack),
        *(torch.where, Tensor.where, Tensor.masked_fill, Tensor.masked_fill_, F.pad),
    ),
    Rule(lambda op, gradient: enter_constants(op, gradient, op.derivative(gradient))),
)
