"""Excitation: how operations distribute the probability that a neuron wins."""

import threading
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from saliency.engine.checks import shown
from saliency.engine.contexts import Conserved
from saliency.engine.kinds import MEANS, NORMALISATIONS, PRODUCTS, QUOTIENTS, SQUASHING, SUMS, WEIGHTED
from saliency.engine.operations import ACTIVATIONS, Function, Gradients, Operation, Row, Rule, Through
from saliency.engine.state import full_precision
from saliency.rules.denominators import away_from_0


def shares(function: Callable[..., Tensor], inputs: Sequence[Tensor], relevance: Tensor) -> list[Tensor]:
    r"""Distribute the relevance :math:`R` of a linear function's results over its inputs, by what each contributes.

    .. math:: R_i = x_i \sum_j \frac{\partial f_j}{\partial x_i} \frac{R_j}{f_j(x)}

    The shares of :math:`R_j` sum to it, unless :math:`f_j(x) = 0`: then it is lost. Computed in float32 at least;
    a result very close to 0 (3e-35 in float32) counts as 0, so that no quotient overflows.
    """
    precision = torch.promote_types(relevance.dtype, torch.float32)
    with torch.enable_grad(), full_precision(relevance.device):
        inputs = [x.detach().to(precision).requires_grad_() for x in inputs]
        results = function(*inputs)
    gradients = torch.autograd.grad(results, inputs, relevance.to(precision) / away_from_0(results.detach()))
    return [(x.detach() * dx).to(relevance.dtype) for x, dx in zip(inputs, gradients, strict=True)]


_ROOM = 2**22  # initial size of the weight buffer: enough for most layers


class PositivePart(threading.local):
    r"""The excitatory part of a weight, :math:`w^+ = \max(0, w)`, valid until the next call.

    It is written to a buffer that this thread reuses: allocating memory for every layer takes longer than its
    convolution.
    """

    def __init__(self) -> None:
        self._memory: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def release(self) -> None:
        """Free the buffer of this thread."""
        self._memory.clear()

    def __call__(self, weight: Tensor) -> Tensor:
        weight, kind = weight.detach(), (weight.device, weight.dtype)
        if kind not in self._memory or self._memory[kind].numel() < weight.numel():
            self._memory[kind] = weight.new_empty(max(weight.numel(), _ROOM))
        memory = self._memory[kind][: weight.numel()].view(weight.shape)
        return torch.clamp(weight, min=0, out=memory)


positive_part = PositivePart()


def excite(op: Operation, probability: Tensor, excitatory: Callable[[Tensor], Tensor] = positive_part) -> Tensor:
    r"""Distribute by excitatory weights and active inputs, without the bias: :math:`f(x^+; w^+)`.

    Zhang et al., Top-down Neural Attention by Excitation Backprop, ECCV 2016, equation 3.
    """
    weight = op.argument(1, "weight")

    def linear(x: Tensor) -> Tensor:
        return with_parameters(op, x, excitatory(weight).to(x.dtype), None)

    return shares(linear, [op.tensors[0].relu()], probability)[0]


def with_parameters(op: Operation, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A weighted operation applied to another input, weight and bias."""
    args, kwargs = list(op.args), dict(op.kwargs)
    for at, (name, value) in enumerate({"input": input, "weight": weight, "bias": bias}.items()):
        if at < len(args):
            args[at] = value
        else:
            kwargs[name] = value
    output: Tensor = op.function(*args, **kwargs)
    return output


def excite_mean(op: Operation, probability: Tensor) -> Tensor:
    """Distribute the probability of a mean, whose weights are all positive, over the active inputs."""
    return shares(op.run, [op.tensors[0].relu()], probability)[0]


def _is_constant(op: Operation, tensors: Sequence[Tensor], number: int) -> bool:
    """Is one of two terms (a view of) a parameter, or the same for a whole batch?"""
    term, other = tensors[number], tensors[1 - number]
    fewer = term.ndim < other.ndim or (term.shape[:1] == (1,) and term.shape != other.shape)
    return op.parameters[number] or (fewer and not op.recorded[number])


def _terms(op: Operation) -> list[Tensor]:
    """The two terms of a sum; none if one of them is a constant, which counts as a bias and gets nothing."""
    tensors = op.tensors if len(op.places) == 2 else []
    if not tensors or _is_constant(op, tensors, 0) or _is_constant(op, tensors, 1):
        return []
    alpha = op.argument(len(op.args), "alpha", 1)
    return tensors if alpha == 1 else [tensors[0], tensors[1] * alpha]


def excite_sum(op: Operation, probability: Tensor) -> list[Tensor] | None:
    """Distribute the probability of a sum over its two terms, by what each contributes: a negative term has a negative
    share.

    If the terms nearly cancel, their shares are large; they are limited where products would become infinite.
    """
    terms = _terms(op)
    most = torch.finfo(probability.dtype).max ** 0.75
    return [share.clamp_(-most, most) for share in shares(torch.add, terms, probability)] if terms else None


def excite_active_terms(op: Operation, probability: Tensor) -> list[Tensor] | None:
    """Distribute the probability of a sum over its active terms: one that is not positive gets nothing."""
    terms = _terms(op)
    return shares(torch.add, [term.relu() for term in terms], probability) if terms else None


def excite_product(op: Operation, probability: Tensor) -> Tensor | None:
    """Pass on what arrives at a tensor that is scaled by a constant; any other product keeps its gradient."""
    if op.kwargs or not isinstance(op.args[0], Tensor):
        return None
    tensors = op.tensors
    scaled = len(tensors) == 1 or _is_constant(op, tensors, 1)
    same = torch.broadcast_shapes(*[x.shape for x in tensors]) == tensors[0].shape
    return probability if scaled and same else None


def excitation_rules(
    excitatory: Callable[[Tensor], Tensor], sums: Callable[[Operation, Tensor], Gradients] = excite_sum
) -> dict[Function, Row]:
    """The table of excitation backprop: ``excitatory`` returns a weight's excitatory part, ``sums`` the rule for sums.

    ReLU, max pooling and concatenation have no row: their gradient already is the paper's rule.
    """
    return {
        **dict.fromkeys(ACTIVATIONS + SQUASHING + NORMALISATIONS, Through(lambda probability: probability)),
        **dict.fromkeys(WEIGHTED, Rule(lambda op, probability: excite(op, probability, excitatory))),
        **dict.fromkeys(MEANS, Rule(excite_mean)),
        **dict.fromkeys(SUMS, Rule(sums)),
        **dict.fromkeys(PRODUCTS + QUOTIENTS, Rule(excite_product)),
    }


EXCITATION = excitation_rules(positive_part)
_OF_SUMS = {"signed": EXCITATION, "active": excitation_rules(positive_part, excite_active_terms)}


def table_of(sums: object) -> Mapping[Function, Row]:
    """The table that distributes sums over all terms, with ``'signed'`` shares, or over the ``'active'`` ones."""
    if not isinstance(sums, str) or sums not in _OF_SUMS:
        raise ValueError(f"sums={shown(sums)} is not a rule for sums; expected 'signed' or 'active'.")
    return _OF_SUMS[sums]


CONSERVED = Conserved(
    *(0.5, 1.05),
    "more than half of the winning probability did not arrive: it went to units without an active excitatory input, "
    "or past the layer; with sums='active' inactive terms of a sum get nothing, with 'signed' a negative share",
    "the winning probability that arrives is not between 0 and 1: the signed shares of a sum are not bounded, nor is "
    "what products and attention pass on; with sums='active' inactive terms get nothing",
    "none of the winning probability arrives: on the way no unit has an active input, above 0, with an excitatory "
    "weight, as when the score is a mean of negative values",
)
