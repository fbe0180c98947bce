r"""Linear: how linear layers and convolutions distribute relevance over their inputs.

A rule is given an operation :math:`y = f(x; w, b)` and the modified gradient :math:`g` of its result, and sends one
back for :math:`x`: :math:`r = y g` is the relevance of a result, :math:`x_i g_i` that of an input. A batch norm that
is the only reader of the result counts as part of it. :math:`w^\pm` are positive and negative parts; denominators are
moved away from 0, :math:`\tilde z = z + \epsilon \operatorname{sign} z`; the relevance that this absorbs is lost.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from saliency.engine.checks import is_number, shown
from saliency.engine.choices import Attributing
from saliency.engine.operations import Operation, Rule
from saliency.engine.state import full_precision
from saliency.rules.denominators import away_from_0
from saliency.rules.excitation import with_parameters

Bound: TypeAlias = float | Sequence[float] | Tensor
_Weights: TypeAlias = tuple[Tensor, Tensor | None]  # weight and bias
EPSILON = 1e-6


class _Parts(NamedTuple):
    """An operation merged with its norm: input, weight, bias, result, and the gradient of the result."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    result: Tensor
    gradient: Tensor

    @property
    def relevance(self) -> Tensor:
        return self.result * self.gradient


class _Term(NamedTuple):
    """One part of a denominator: the operation applied to an input, a weight and a bias."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None = None
    sign: int = 1


def _part_of(weight: Tensor, bias: Tensor | None, sign: int, factor: float | None = None) -> _Weights:
    """The part of weight and bias with this sign; with a ``factor``, the whole plus that many times the part."""

    def change(values: Tensor) -> Tensor:
        part = values.clamp(min=0) if sign > 0 else values.clamp(max=0)
        return part if factor is None else torch.add(values, part, alpha=factor)

    return change(weight), None if bias is None else change(bias)


def _by_channel(values: Tensor, weight: Tensor) -> Tensor:
    """Values per channel of a result, shaped to be multiplied with it."""
    return values.view(-1, *[1] * (weight.ndim - 2))


def _parts_of(op: Operation, gradient: Tensor) -> _Parts:
    precision = torch.promote_types(gradient.dtype, torch.float32)
    x, result, gradient = (values.to(precision) for values in (op.tensors[0], op.result, gradient))
    weight: Tensor = op.argument(1, "weight").to(precision)
    bias: Tensor | None = op.argument(2, "bias")
    bias = None if bias is None else bias.to(precision)
    if op.standing.norm is not None:
        scale, shift = (values.to(precision) for values in op.standing.norm)
        factor, summand = _by_channel(scale, weight), _by_channel(shift, weight)
        result, gradient = (
            torch.addcmul(summand, result, factor),
            gradient / torch.where(factor == 0, torch.inf, factor),
        )
        weight = weight * scale.view(-1, *[1] * (weight.ndim - 1))
        bias = shift if bias is None else torch.addcmul(shift, bias, scale)
        if op.ledger is not None:  # the norm has already entered its shift
            op.ledger.add(bias=-gradient * summand)
    return _Parts(x, weight, bias, result, gradient)


def _share(op: Operation, terms: Sequence[_Term], relevance: Tensor, epsilon: float) -> list[Tensor]:
    r"""Distribute relevance by :math:`r / \tilde z, z = \sum_k \pm f(x_k; w_k, b_k)`: the gradient of each input."""
    with torch.enable_grad(), full_precision(relevance.device):
        inputs = [term.x.detach().requires_grad_() for term in terms]
        results = [with_parameters(op, x, term.weight, term.bias) for x, term in zip(inputs, terms, strict=True)]
    z = results[0].detach()
    for result, term in zip(results[1:], terms[1:], strict=True):
        z = torch.add(z, result.detach(), alpha=term.sign)
    ratio = relevance / away_from_0(z, epsilon)
    if op.ledger is not None:
        op.ledger.add(lost=relevance - z * ratio)
        for term in terms:
            if term.bias is not None:
                op.ledger.add(bias=term.sign * ratio * _by_channel(term.bias, term.weight))
    return list(torch.autograd.grad(results, inputs, [ratio] * len(results)))


def _share_by_sign(
    op: Operation, x: Tensor, above: Callable[[], _Weights], below: Callable[[], _Weights], r: Tensor, epsilon: float
) -> Tensor:
    """Distribute relevance over inputs, with other weights, without a bias, for the negative ones.

    If inputs are known never to be negative, that needs half the work.
    """
    if op.standing.origins[0].nonnegative:
        return _share(op, [_Term(x, *above())], r, epsilon)[0]
    found = _share(op, [_Term(x.clamp(min=0), *above()), _Term(x.clamp(max=0), below()[0])], r, epsilon)
    return torch.where(x < 0, found[1], found[0])


def epsilon(epsilon: float = EPSILON) -> Rule:
    r"""In proportion to the contribution of each input to the result: :math:`g_i = \sum_j w_{ij} r_j / \tilde y_j`.

    Bach et al., On Pixel-Wise Explanations, PLOS ONE 2015, equation 58.
    """
    _check_number("epsilon", epsilon)

    def share(op: Operation, gradient: Tensor) -> list[Tensor | None]:
        parts = _parts_of(op, gradient)
        kept = parts.result / away_from_0(parts.result, epsilon)
        if op.ledger is not None:
            op.ledger.add(lost=parts.relevance * (1 - kept))
            if parts.bias is not None:
                op.ledger.add(bias=parts.gradient * kept * _by_channel(parts.bias, parts.weight))
        return op.derivative((gradient * kept).to(gradient.dtype))

    return Rule(share)


def alpha_beta(alpha: float = 2, beta: float = 1, epsilon: float = EPSILON) -> Rule:
    r"""What raises the result gets :math:`\alpha` times its relevance, what lowers it :math:`-\beta` times.

    With :math:`z^\pm` the sums of positive and negative products :math:`w_{ij} x_i` and biases:
    :math:`g_i = \alpha \sum_j w^+_{ij} r_j / \tilde z^+_j - \beta \sum_j w^-_{ij} r_j / \tilde z^-_j`, and the same
    with :math:`w^\pm` exchanged where :math:`x_i < 0`. Conserves relevance if :math:`\alpha - \beta = 1`.
    Bach et al., PLOS ONE 2015, equation 60.
    """
    for name, value in (("alpha", alpha), ("beta", beta), ("epsilon", epsilon)):
        _check_number(name, value)

    def share(op: Operation, gradient: Tensor) -> Tensor:
        x, weight, bias, *_ = parts = _parts_of(op, gradient)
        raising, lowering = (partial(_part_of, weight, bias, sign) for sign in (1, -1))
        relevance = parts.relevance if alpha == 1 else alpha * parts.relevance
        found = _share_by_sign(op, x, raising, lowering, relevance, epsilon)
        if beta:
            found = found + _share_by_sign(op, x, lowering, raising, -beta * parts.relevance, epsilon)
        return found.to(gradient.dtype)

    return Rule(share)


def z_plus(epsilon: float = EPSILON) -> Rule:
    r"""In proportion to the positive contributions only: :math:`\alpha = 1, \beta = 0`.

    Montavon et al., Explaining Nonlinear Classification Decisions, Pattern Recognition 2017.
    """
    return alpha_beta(1, 0, epsilon)


def gamma(gamma: float = 0.25, epsilon: float = EPSILON) -> Rule:
    r"""Like :func:`epsilon`, but contributions with the sign of the result count :math:`1 + \gamma` times.

    For positive results :math:`w + \gamma w^+` if :math:`x_i \ge 0` and :math:`w + \gamma w^-` if :math:`x_i < 0`, for
    negative ones the other way round. Montavon et al., Layer-Wise Relevance Propagation: An Overview, 2019, section
    10.2.3; for results of both signs: Andeol et al., Learning Domain Invariant Representations, 2023.
    """
    for name, value in (("gamma", gamma), ("epsilon", epsilon)):
        _check_number(name, value)

    def share(op: Operation, gradient: Tensor) -> Tensor:
        x, weight, bias, result, _ = parts = _parts_of(op, gradient)
        raising, lowering = (partial(_part_of, weight, bias, sign, gamma) for sign in (1, -1))
        above, below = (torch.where(side, parts.relevance, 0) for side in (result > 0, result < 0))
        found = _share_by_sign(op, x, raising, lowering, above, epsilon)
        return (found + _share_by_sign(op, x, lowering, raising, below, epsilon)).to(gradient.dtype)

    return Rule(share)


def w_square(epsilon: float = EPSILON) -> Attributing:
    r"""By squared weights, whatever the input: :math:`R_i = \sum_j w_{ij}^2 r_j / \sum_i w_{ij}^2`. For a first layer.

    Montavon et al., Pattern Recognition 2017, equation 12.
    """
    return _by_weights(torch.square, epsilon)


def flat(epsilon: float = EPSILON) -> Attributing:
    r"""Evenly over all inputs of a unit, whatever their values and weights. For a first layer.

    Lapuschkin et al., Unmasking Clever Hans Predictors, Nature Communications 2019.
    """
    return _by_weights(torch.ones_like, epsilon)


def _by_weights(function: Callable[[Tensor], Tensor], epsilon: float) -> Attributing:
    _check_number("epsilon", epsilon)

    def attribute(op: Operation, gradient: Tensor) -> Tensor:
        parts = _parts_of(op, gradient)
        term = _Term(torch.ones_like(parts.x), function(parts.weight))
        return _share(op, [term], parts.relevance, epsilon)[0].to(gradient.dtype)

    return Attributing(attribute)


def z_box(low: Bound, high: Bound, epsilon: float = EPSILON) -> Attributing:
    r"""By the distance of inputs from the bounds of their values, :math:`l \le x \le h`. For a first layer.

    .. math:: R_i = \sum_j \frac{x_i w_{ij} - l_i w^+_{ij} - h_i w^-_{ij}}{\sum_i (\cdots)} r_j

    Bounds are numbers, one per channel, or tensors that broadcast to the input: normalised black and white.
    Montavon et al., Pattern Recognition 2017, equation 14.
    """
    _check_number("epsilon", epsilon)

    def attribute(op: Operation, gradient: Tensor) -> Tensor:
        x, weight, bias, *_ = parts = _parts_of(op, gradient)
        bounds = (_bound(name, value, x, weight) for name, value in (("low", low), ("high", high)))
        terms = [
            _Term(x, weight, bias),
            _Term(next(bounds), *_part_of(weight, bias, 1), -1),
            _Term(next(bounds), *_part_of(weight, bias, -1), -1),
        ]
        found = _share(op, terms, parts.relevance, epsilon)
        shares = [term.sign * term.x * dx for term, dx in zip(terms, found, strict=True)]
        return (shares[0] + shares[1] + shares[2]).to(gradient.dtype)

    return Attributing(attribute)


def _bound(name: str, value: Bound, x: Tensor, weight: Tensor) -> Tensor:
    """A bound, broadcast to the input's shape."""
    bound = torch.as_tensor(value, dtype=x.dtype, device=x.device)
    bound = _by_channel(bound, weight) if bound.ndim == 1 else bound
    try:
        return bound.expand_as(x)
    except RuntimeError as error:
        raise ValueError(
            f"{name}={shown(value)} does not fit an input of shape {tuple(x.shape)}; expected a number, one for each "
            "channel, or a tensor that broadcasts to it."
        ) from error


def identity() -> Rule:
    r"""To the input at the same position, whatever the weights: :math:`g_i = r_i / x_i`; lost if :math:`x_i = 0`.

    For layers that keep the shape of their input.
    """

    def share(op: Operation, gradient: Tensor) -> Tensor:
        parts = _parts_of(op, gradient)
        if parts.x.shape != parts.result.shape:
            shapes = f"{tuple(parts.x.shape)} to {tuple(parts.result.shape)}"
            raise ValueError(f"rules=identity() is not possible for a layer from {shapes}; expected equal shapes.")
        found = parts.relevance / away_from_0(parts.x)
        if op.ledger is not None:
            op.ledger.add(lost=parts.relevance - parts.x * found)
        return found.to(gradient.dtype)

    return Rule(share)


def _check_number(argument: str, value: object) -> None:
    if not is_number(value) or value < 0:
        raise ValueError(f"{argument}={shown(value)} is not a factor; expected a number >= 0.")
