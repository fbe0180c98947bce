"""Biases: the part of an operation's result beyond its derivative times its inputs."""

from copy import copy

import torch
from torch import Tensor

from saliency.engine.kinds import (
    ATTENTION,
    BATCH_NORMS,
    DIFFERENCES,
    JOINS,
    MATRIX_PRODUCTS,
    NORMALISATIONS,
    PRODUCTS,
    QUOTIENTS,
    SQUASHING,
    SUMS,
    WEIGHTED,
)
from saliency.engine.operations import ACTIVATIONS, Operation
from saliency.rules.unfused import attend

_ELEMENTWISE = frozenset(f for f in (*ACTIVATIONS, *SQUASHING) if "softmax" not in f.__name__)
# Operations whose results are activations of layers.
OF_POSITIONS = frozenset((*WEIGHTED, *NORMALISATIONS, *ACTIVATIONS, *PRODUCTS, *QUOTIENTS, *SUMS, *DIFFERENCES, *JOINS))
# ReLU, pooling, reshaping, and sums and concatenations of results have no bias.
BIASED = OF_POSITIONS | {*SQUASHING, *MATRIX_PRODUCTS, *ATTENTION}


def bias_of(op: Operation) -> Tensor | None:
    r"""The bias of an operation, :math:`b = f(x) - \sum_i \frac{\partial f}{\partial x_i} x_i`, to be broadcast to its
    result; ``None`` where there is none.

    For an affine operation, as a convolution or a batch norm with running statistics, it is the operation's own; for
    a curved one it is implicit. A constant that is added or concatenated, as positions and class tokens are, is one.
    Srinivas and Fleuret, Full-Gradient Representation, NeurIPS 2019.
    """
    if op.function in WEIGHTED and not any(op.recorded[1:]):
        bias: Tensor | None = op.argument(2, "bias")
        return None if bias is None else bias.view(-1, *[1] * (op.tensors[1].ndim - 2))  # one axis for each of space
    if op.function in SUMS + DIFFERENCES + JOINS and len(op.places) > 1 and all(op.recorded):
        return None
    if op.function in BATCH_NORMS and not op.argument(5, "training", False):
        x, *others = op.tensors
        at_zero: Tensor = op.run(torch.zeros_like(x[:1]), *others)
        return at_zero  # equal at every position; a difference would be so only up to rounding
    result, change = _elementwise(op) if op.function in _ELEMENTWISE else _linearised(op)
    rounding = 8 * torch.finfo(result.dtype).eps * result.abs()
    return torch.where((result - change).abs() <= rounding, 0, result - change)  # linear operations, such as a scale


def _elementwise(op: Operation) -> tuple[Tensor, Tensor]:
    """The result of an operation, and its derivative applied to its inputs."""
    result: Tensor = op.run(*op.tensors)
    (slope, *_) = op.derivative(torch.ones_like(result))
    return result, result if slope is None else slope * op.tensors[0]


def _linearised(op: Operation) -> tuple[Tensor, Tensor]:
    """The same for an operation that mixes entries: its backward pass is linear in the gradient, and is transposed."""
    if op.function in ATTENTION:
        op = copy(op)
        op.function = attend
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_(moves) for x, moves in zip(op.tensors, op.recorded, strict=True)]
        moving = [leaf for leaf in leaves if leaf.requires_grad]
        result = op.run(*leaves)
        sent = torch.zeros_like(result, requires_grad=True)
        back = torch.autograd.grad(result, moving, sent, create_graph=True)
    (change,) = torch.autograd.grad(back, sent, [x.detach() for x in moving])
    return result.detach(), change
