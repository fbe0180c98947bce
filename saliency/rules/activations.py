"""Activations: the rules of guided backpropagation and DeConvNet, and the rule of relevance."""

import torch
from torch import Tensor

from saliency.engine.kinds import GATED_UNITS, SQUASHING
from saliency.engine.operations import (
    ACTIVATIONS,
    Function,
    Operation,
    Pre,
    Row,
    Rule,
    Through,
    activation_rules,
    with_exported,
)
from saliency.rules.denominators import negligible

# The positive part of the gradient goes through the activation: dx = f'(x) max(0, dy); for ReLU where dy > 0 and x > 0.
# Springenberg et al., Striving for Simplicity, ICLR workshop 2015.
GUIDED = activation_rules(Pre(torch.relu))

# The gradient goes through the activation as through a deconvolution network: dx = max(0, dy), whatever x was.
# Zeiler and Fergus, Visualizing and Understanding Convolutional Networks, ECCV 2014.
DECONVNET = activation_rules(Through(torch.relu))

# Elementwise functions that are not activations, but may be part of one that is spelled out.
_ELEMENTWISE = with_exported(
    *(torch.pow, Tensor.pow, Tensor.__pow__, torch.square, Tensor.square, torch.sqrt, Tensor.sqrt),
    *(torch.exp, Tensor.exp, torch.erf, Tensor.erf, torch.special.erf),
)


def pass_on(op: Operation, gradient: Tensor) -> list[Tensor | None]:
    r"""Pass the relevance of a result on to its own input: :math:`dx = dy \, f(x) / x`, or :math:`dy \, f'(x)` near 0.

    Bach et al., PLOS ONE 2015, section 2.4; the identity rule of Achtibat et al., AttnLRP, ICML 2024.
    """
    x, (native, *others) = op.tensors[0], op.derivative(gradient)
    near = x.abs() <= negligible(x.dtype)
    found = torch.where(near, 0 if native is None else native, gradient * op.result / torch.where(near, 1, x))
    if op.ledger is not None:
        op.ledger.add(lost=gradient * op.result - x * found)
    return [found, *others]


def pass_on_by_gates(op: Operation, gradient: Tensor) -> Tensor:
    """Rule of a gated linear unit, a * sigmoid(b): the gate b gets nothing."""
    a, b = op.tensors[0].chunk(2, int(op.argument(1, "dim", -1)))
    return torch.cat([gradient * b.sigmoid(), torch.zeros_like(a)], int(op.argument(1, "dim", -1)))


# ReLU has no row: its own derivative is f(x) / x.
PASSING: dict[Function, Row] = {
    **dict.fromkeys((*ACTIVATIONS, *SQUASHING, *_ELEMENTWISE), Rule(pass_on)),
    **dict.fromkeys(GATED_UNITS, Rule(pass_on_by_gates)),
}
