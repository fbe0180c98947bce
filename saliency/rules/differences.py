"""Differences: DeepLIFT's rescale rule, quotients of differences instead of derivatives.

An operation runs at the input and at a reference, with results y = f(x) and y' = f(x'). Its multipliers m distribute
the change of the results over the changes of the arguments: sum m (x - x') = sum g (y - y'), for multipliers g of the
results. So they chain as gradients do, and linear operations need no rule. For y = exp(x), x = 1 and x' = 0, m = (e -
1) / (1 - 0) = 1.72, where the derivative is 2.72. Shrikumar et al., Learning Important Features Through Propagating
Activation Differences, ICML 2017.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from saliency.engine.comparing import Compared, Multilinear
from saliency.engine.kinds import (
    ATTENTION,
    GATED_UNITS,
    GROUP_NORMS,
    INSTANCE_NORMS,
    LAYER_NORMS,
    LOG_SOFTMAX,
    MATRIX_PRODUCTS,
    PRODUCTS,
    QUOTIENTS,
    RMS_NORMS,
    SOFTMAX,
    SQUASHING,
    WEIGHTED,
)
from saliency.engine.operations import Function, Row, Rule, activation_rules, with_exported
from saliency.rules import pairs
from saliency.rules.pairs import gradients, on_graph, precise, quotient, slope, spelled

ELEMENTWISE = with_exported(
    *(torch.clamp, torch.clamp_, torch.clamp_min, torch.clamp_min_, torch.clamp_max, torch.clamp_max_),
    *(Tensor.clamp, Tensor.clamp_, Tensor.clamp_min, Tensor.clamp_min_, Tensor.clamp_max, Tensor.clamp_max_),
    *(torch.clip, torch.clip_, Tensor.clip, Tensor.clip_, F.threshold, torch.threshold, torch.threshold_),
    *(F.hardshrink, torch.hardshrink, F.softshrink, F.tanhshrink),
    *(torch.exp, torch.exp_, Tensor.exp, Tensor.exp_, torch.expm1, Tensor.expm1),
    *(torch.log, torch.log_, Tensor.log, Tensor.log_, torch.log1p, Tensor.log1p),
    *(torch.sqrt, torch.sqrt_, Tensor.sqrt, Tensor.sqrt_, torch.rsqrt, Tensor.rsqrt),
    *(torch.square, Tensor.square, torch.pow, Tensor.pow, Tensor.pow_),
    *(Tensor.__pow__, Tensor.__ipow__, Tensor.__rpow__),
    *(torch.reciprocal, Tensor.reciprocal, Tensor.__rdiv__),
    *(torch.abs, torch.abs_, Tensor.abs, Tensor.abs_, torch.erf, Tensor.erf),
    *(torch.sin, Tensor.sin, torch.cos, Tensor.cos),
)
FUSED_PRODUCTS = with_exported(
    *(torch.addcmul, Tensor.addcmul, torch.addmm, Tensor.addmm, Tensor.__rmatmul__, torch.einsum, F.bilinear),
)
MAXIMA = with_exported(
    *(torch.maximum, Tensor.maximum, torch.fmax, Tensor.fmax, torch.max, Tensor.max),
    *(torch.minimum, Tensor.minimum, torch.fmin, Tensor.fmin, torch.min, Tensor.min),
)
POOLS: tuple[Function, ...] = (
    *with_exported(F.max_pool1d, F.max_pool2d, F.max_pool3d, torch.max_pool1d, torch.max_pool2d, torch.max_pool3d),
    *with_exported(torch.amax, Tensor.amax),
    *(F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d),  # exported ones also return indices
)


def rescale(op: Compared, multiplier: Tensor) -> Tensor | None:
    r"""The rescale rule for an elementwise function: :math:`m = g \, \Delta y / \Delta x`."""
    (x, *others), (reference, *_) = (precise(of.tensors) for of in (op, op.reference))
    if not op.recorded[0] or any(op.recorded[1:]):
        return None
    found, y = slope(lambda x: op.run(x, *others), x, reference)
    return None if y.shape != x.shape else found.mul_(multiplier).to(multiplier.dtype)


def halfway(op: Compared, multiplier: Tensor) -> list[Tensor | None]:
    r"""Products: each factor's multiplier is the mean of the other factor, :math:`m_a = g \, (b + b') / 2`.

    It is the derivative halfway between input and reference, which is exact for functions of degree 2.
    """
    each = zip(precise(op.tensors), precise(op.reference.tensors), op.recorded, strict=True)
    y, *leaves = on_graph(op.run, [(x + start) / 2 if depends else x for x, start, depends in each], op.recorded)
    return [None if m is None else m.to(multiplier.dtype) for m in gradients(y, leaves, multiplier)]


def divide(op: Compared, multiplier: Tensor) -> list[Tensor | None] | None:
    r"""Quotients: products with a reciprocal, for which :math:`\Delta (1/b) / \Delta b = -1 / (b b')`."""
    if len(op.places) < 2 or op.kwargs:
        return None
    (a, b), (a0, b0) = precise(op.tensors), precise(op.reference.tensors)
    of_a, of_b = multiplier * (1 / b + 1 / b0) / 2, -multiplier * (a + a0) / (2 * b * b0)
    return [of_a.sum_to_size(a.shape).to(multiplier.dtype), of_b.sum_to_size(b.shape).to(multiplier.dtype)]


def extremum(op: Compared, multiplier: Tensor) -> list[Tensor | None]:
    r"""The maximum or minimum of two, :math:`y = (a + b \pm |a - b|) / 2`, by the rescale rule for the last term."""
    (a, b), (a0, b0) = precise(op.tensors), precise(op.reference.tensors)
    sums = [2 * of.run(*tensors) - tensors[0] - tensors[1] for of, tensors in ((op, (a, b)), (op.reference, (a0, b0)))]
    between, moved = a - b, a - b - a0 + b0
    sign = torch.sign(sums[0]) * torch.sign(between)
    term = quotient(sums[0] - sums[1], moved, sign)
    both = multiplier * (1 + term) / 2, multiplier * (1 - term) / 2
    return [m.sum_to_size(x.shape).to(multiplier.dtype) for m, x in zip(both, (a, b), strict=True)]


def pool(op: Compared, multiplier: Tensor) -> Tensor:
    r"""Max pooling: the rise from :math:`y'` to :math:`t = \max(y, y')` goes to the input, the rest to the reference.

    .. math:: m = \frac{P^\top g (t - y') + P'^\top g (y - t)}{\Delta x}

    :math:`P` selects the winners of the input, :math:`P'` those of the reference.
    """
    (y, x), (y0, x0) = (on_graph(of.run, precise(of.tensors), [True]) for of in (op, op.reference))
    top = torch.maximum(y.detach(), y0.detach())
    sent = (y, x, multiplier * (top - y0)), (y0, x0, multiplier * (y - top)), (y, x, multiplier)
    won, lost, own = (torch.autograd.grad(*each, retain_graph=True)[0] for each in sent)
    return quotient(won + lost, x.detach() - x0.detach(), own).to(multiplier.dtype)


def _has_two(input: object, other: object = None, *args: object, **kwargs: object) -> bool:
    return isinstance(other, Tensor)


def _has_axis(input: object, dim: object = None, *args: object, **kwargs: object) -> bool:
    return isinstance(dim, int)


def _is_euclidean(input: object, p: float = 2.0, dim: object = 1, eps: float = 0, out: object = None) -> bool:
    return p == 2 and isinstance(dim, int) and out is None


def _has_own_statistics(*args: object, use_input_stats: object = True, **kwargs: object) -> bool:
    return bool(args[5] if len(args) > 5 else use_input_stats)


def _is_plain(*args: object, dropout_p: object = 0.0, enable_gqa: object = False, **kwargs: object) -> bool:
    return not (args[4] if len(args) > 4 else dropout_p) and not enable_gqa


DEEP_LIFT: dict[Function, Row] = {
    **activation_rules(Rule(rescale)),
    **dict.fromkeys(SQUASHING + ELEMENTWISE, Rule(rescale)),
    **dict.fromkeys(WEIGHTED + PRODUCTS + MATRIX_PRODUCTS + FUSED_PRODUCTS, Multilinear(halfway)),
    **dict.fromkeys(QUOTIENTS, Rule(divide)),
    **dict.fromkeys(MAXIMA, Rule(extremum, _has_two)),
    **dict.fromkeys(POOLS, Rule(pool)),
    **dict.fromkeys(SOFTMAX, Rule(spelled(pairs.softmax), _has_axis)),
    **dict.fromkeys(LOG_SOFTMAX, Rule(spelled(pairs.log_softmax), _has_axis)),
    **dict.fromkeys(LAYER_NORMS, Rule(spelled(pairs.layer_norm))),
    **dict.fromkeys(RMS_NORMS, Rule(spelled(pairs.rms_norm))),
    **dict.fromkeys(GROUP_NORMS, Rule(spelled(pairs.group_norm))),
    **dict.fromkeys(INSTANCE_NORMS, Rule(spelled(pairs.instance_norm), _has_own_statistics)),
    **dict.fromkeys(GATED_UNITS, Rule(spelled(pairs.gated))),
    F.local_response_norm: Rule(spelled(pairs.local_response_norm)),
    F.normalize: Rule(spelled(pairs.normalize), _is_euclidean),
    **dict.fromkeys(ATTENTION, Rule(spelled(pairs.attend), _is_plain)),
}
