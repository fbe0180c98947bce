"""Full gradients: a score as what the gradient says of the input, and of every bias."""

from collections.abc import Sequence
from functools import partial

from torch import Tensor
from torch.nn import Module
from typing_extensions import Unpack

from saliency.engine.call import Input
from saliency.engine.contexts import RuleContext
from saliency.engine.driver import saliency
from saliency.engine.layers import Layers
from saliency.engine.layouts import to_channels_first
from saliency.engine.maps import gradient_of, resize_saliency, safe_divide, sum_channels
from saliency.engine.operations import Operation, Rule
from saliency.engine.signatures import BackwardOptions, Maps, typed
from saliency.engine.targets import Target
from saliency.rules.biases import BIASED, bias_of


class FullGradientContext(RuleContext):
    r"""The plain backward pass, which notes the bias-gradients :math:`b \odot dy` of every operation in ``terms``.

    With the gradient times the activation at the layer where it ends they sum to the score.

    >>> model, x = torch.nn.Linear(2, 1), torch.ones(1, 2)
    >>> context = FullGradientContext()
    >>> found = saliency(model, x, 0, context_builder=lambda: context, gradient_to_saliency=lambda x: x * x.grad)
    >>> torch.allclose(found.sum() + sum(term.sum() for term in context.terms), model(x))
    True
    """

    def __init__(self) -> None:
        super().__init__(dict.fromkeys(BIASED, Rule(self._weigh)))
        self.terms: list[Tensor] = []

    def _weigh(self, op: Operation, gradient: Tensor) -> None:
        bias = bias_of(op)
        if bias is not None:
            self.terms.append(gradient * bias)

    def send_back(
        self, scores: Tensor, gradient: Tensor, tensors: Sequence[Tensor], retain: bool
    ) -> list[Tensor | None]:
        """The gradients; the terms of another target are forgotten."""
        self.terms = []
        return super().send_back(scores, gradient, tensors, retain)


def _grid(term: Tensor, size: Sequence[int]) -> Tensor | None:
    """A bias-gradient as (N, C, h, w); ``None`` where it has no positions."""
    try:
        return None if term.ndim < 3 else to_channels_first(term, size)
    except ValueError:
        return None


def _scaled(term: Tensor) -> Tensor:
    """The absolute values of every channel, each scaled to [0, 1]."""
    values, positions = term.abs(), tuple(range(2, term.ndim))
    low, high = values.amin(positions, keepdim=True), values.amax(positions, keepdim=True)
    return safe_divide(values - low, high - low)


def _full(x: Tensor, contexts: list[FullGradientContext]) -> Tensor:
    found = sum_channels(_scaled(x * gradient_of(x)))
    for term in contexts[-1].terms:
        grid = _grid(term, x.shape[2:])
        if grid is not None and grid.ndim == x.ndim:
            found = found + resize_saliency(x, sum_channels(_scaled(grid)), True, "bilinear")
    return found


@typed
def full_grad(
    model: Module, input: Input, target: Target, saliency_layer: Layers = "", **options: Unpack[BackwardOptions]
) -> Maps:
    r"""FullGrad: the gradient times the input, and the gradient of every bias times that bias.

    .. math:: s_{n1u} = \sum_c \psi(x \odot dx)_{ncu} + \sum_l \sum_c \psi(b_l \odot dy_l)_{ncu}, \qquad
              f = \sum x \odot dx + \sum_l \sum b_l \odot dy_l

    with :math:`\psi`, the absolute values of a channel scaled to [0, 1] and brought to the map's size. Biases are those
    of convolutions, and implicit ones, :math:`f_l(x) - f_l'(x) x`, of normalisations, activations, products and
    attention. Those without positions, of a classifier, are not in the map. (N, 1, h, w), non-negative. At a layer it
    is the biases behind it. Srinivas and Fleuret, Full-Gradient Representation for Neural Network Visualization,
    NeurIPS 2019. Options and errors: see :func:`saliency`.
    """
    if isinstance(saliency_layer, (list, tuple)) and saliency_layer:  # each has biases behind it of its own
        return [full_grad(model, input, target, layer, **options) for layer in saliency_layer]
    contexts: list[FullGradientContext] = []

    def make_context() -> FullGradientContext:
        contexts[:] = [FullGradientContext()]
        return contexts[0]

    to_map = partial(_full, contexts=contexts)
    return saliency(
        model, input, target, saliency_layer, context_builder=make_context, gradient_to_saliency=to_map, **options
    )
