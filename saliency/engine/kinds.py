"""Kinds: functions that do the same, in all their spellings. Those of activations are in :mod:`operations`."""

import torch
import torch.nn.functional as F
from torch import Tensor

from saliency.engine.operations import Function, Operation, with_exported

LINEAR = with_exported(F.linear)
CONVOLUTIONS = with_exported(F.conv1d, F.conv2d, F.conv3d)
WEIGHTED: tuple[Function, ...] = (
    *LINEAR,
    *CONVOLUTIONS,
    *with_exported(F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
    torch.ops.aten.convolution.default,
)

BATCH_NORMS = with_exported(F.batch_norm, torch.batch_norm)
INSTANCE_NORMS = with_exported(F.instance_norm, torch.instance_norm)
GROUP_NORMS = with_exported(F.group_norm, torch.group_norm)
LAYER_NORMS = with_exported(F.layer_norm, torch.layer_norm)
RMS_NORMS = with_exported(F.rms_norm, torch.rms_norm)
NORMALISATIONS = (
    *(*BATCH_NORMS, *INSTANCE_NORMS, *GROUP_NORMS, *LAYER_NORMS, *RMS_NORMS),
    *with_exported(F.local_response_norm),
)

MEANS = with_exported(
    *(F.avg_pool1d, F.avg_pool2d, F.avg_pool3d),
    *(F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d),
    *(torch.mean, Tensor.mean),
)
SUMS = with_exported(torch.add, Tensor.add, Tensor.add_)
DIFFERENCES = with_exported(torch.sub, Tensor.sub, Tensor.sub_, torch.rsub, Tensor.__rsub__)
JOINS = with_exported(torch.cat, torch.concat, torch.concatenate, torch.stack, torch.hstack, torch.vstack)
PRODUCTS = with_exported(torch.mul, Tensor.mul, Tensor.mul_, torch.multiply, Tensor.multiply, Tensor.multiply_)
QUOTIENTS = with_exported(
    *(torch.div, Tensor.div, Tensor.div_, torch.true_divide, Tensor.true_divide, Tensor.true_divide_),
    *(torch.divide, Tensor.divide, Tensor.divide_),
)
MATRIX_PRODUCTS = with_exported(
    *(torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm, torch.mm, Tensor.mm),
    *(torch.baddbmm, Tensor.baddbmm),
)

SOFTMAX = with_exported(F.softmax, torch.softmax, Tensor.softmax, torch.special.softmax)
LOG_SOFTMAX = with_exported(F.log_softmax, torch.log_softmax, Tensor.log_softmax, torch.special.log_softmax)
ATTENTION = with_exported(F.scaled_dot_product_attention)
GATED_UNITS = with_exported(F.glu)
# Monotone in its own input: a neuron and its activation count as one.
SQUASHING = (
    *with_exported(
        *(F.sigmoid, torch.sigmoid, torch.sigmoid_, Tensor.sigmoid, Tensor.sigmoid_, F.hardsigmoid, F.logsigmoid),
        *(F.tanh, torch.tanh, torch.tanh_, Tensor.tanh, Tensor.tanh_, F.softplus, F.softsign),
    ),
    *(*SOFTMAX, *LOG_SOFTMAX),
)


def parameters_of(norm: Operation) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Mean, variance, weight and bias of a batch or instance norm: ``torch.batch_norm`` has the last two first."""
    names = ("running_mean", "running_var", "weight", "bias")
    order = names if norm.function in (F.batch_norm, F.instance_norm) else (*names[2:], *names[:2])
    mean, variance, weight, bias = (norm.argument(order.index(name) + 1, name) for name in names)
    return mean, variance, weight, bias
