"""Normalisation: relevance through norms. The standard deviation counts as a constant; the mean does not."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from saliency.engine.kinds import BATCH_NORMS, GROUP_NORMS, INSTANCE_NORMS, LAYER_NORMS, RMS_NORMS, parameters_of
from saliency.engine.operations import Function, Operation, Row, Rule, with_exported
from saliency.rules.activations import pass_on


def _centre(x: Tensor, gradient: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
    r"""The derivative of :math:`(x - \bar x) / \sqrt{v + \epsilon}` with the variance :math:`v` as a constant."""
    precision = torch.promote_types(x.dtype, torch.float32)
    variance = x.to(precision).var(dims, correction=0, keepdim=True)
    scaled = gradient.to(precision) * (variance + eps).rsqrt()
    centred: Tensor = scaled - scaled.mean(dims, keepdim=True)
    return centred.to(gradient.dtype)


def _enter_bias(op: Operation, gradient: Tensor, bias: Tensor | None) -> None:
    if op.ledger is not None and bias is not None:
        op.ledger.add(bias=gradient * bias)


def _through_layer_norm(op: Operation, gradient: Tensor) -> Tensor:
    shape, weight, bias = op.argument(1, "normalized_shape"), op.argument(2, "weight"), op.argument(3, "bias")
    _enter_bias(op, gradient, bias)
    dims = tuple(range(-len(shape), 0))
    return _centre(op.tensors[0], gradient if weight is None else gradient * weight, dims, op.argument(4, "eps", 1e-5))


def _through_groups(
    op: Operation, gradient: Tensor, groups: int, affine: Sequence[Tensor | None], eps: float
) -> Tensor:
    x = op.tensors[0]
    weight, bias = (None if values is None else values.view(-1, *[1] * (x.ndim - 2)) for values in affine)
    _enter_bias(op, gradient, bias)
    gradient = gradient if weight is None else gradient * weight
    shape = (len(x), groups, -1)
    return _centre(x.reshape(shape), gradient.reshape(shape), (2,), eps).view_as(x)


def _through_group_norm(op: Operation, gradient: Tensor) -> Tensor:
    affine = (op.argument(2, "weight"), op.argument(3, "bias"))
    return _through_groups(op, gradient, op.argument(1, "num_groups"), affine, op.argument(4, "eps", 1e-5))


def _through_instance_norm(op: Operation, gradient: Tensor) -> Tensor | list[Tensor | None]:
    if not op.argument(5, "use_input_stats", True):
        return _through_statistics(op, gradient)
    return _through_groups(op, gradient, op.tensors[0].shape[1], parameters_of(op)[2:], op.argument(7, "eps", 1e-5))


def _through_statistics(op: Operation, gradient: Tensor) -> list[Tensor | None]:
    """With a fixed mean and variance, what the norm subtracts and adds is a bias."""
    found = op.derivative(gradient)
    if op.ledger is not None and found[0] is not None:
        op.ledger.add(bias=gradient * op.result - op.tensors[0] * found[0])
    return found


NORMS: dict[Function, Row] = {
    **dict.fromkeys(BATCH_NORMS, Rule(_through_statistics)),
    **dict.fromkeys(LAYER_NORMS, Rule(_through_layer_norm)),
    **dict.fromkeys(GROUP_NORMS, Rule(_through_group_norm)),
    **dict.fromkeys(INSTANCE_NORMS, Rule(_through_instance_norm)),
    # Without a mean to subtract, elements are divided by a constant.
    **dict.fromkeys(RMS_NORMS + with_exported(F.local_response_norm, F.normalize), Rule(pass_on)),
}
