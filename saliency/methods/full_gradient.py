"""Full gradients: a score as what the gradient says of the input, and of every bias."""

from functools import partial
from typing import NamedTuple

from torch import Tensor
from torch.nn import Module
from typing_extensions import Unpack

from saliency.engine.call import Input
from saliency.engine.driver import saliency
from saliency.engine.layers import Layers
from saliency.engine.layouts import to_channels_first
from saliency.engine.maps import gradient_of, resize_saliency, safe_divide, sum_channels
from saliency.engine.operations import Function, Operation
from saliency.engine.signatures import BackwardOptions, Maps, typed
from saliency.engine.targets import Target
from saliency.engine.watching import Watching
from saliency.methods.noting import NotingContext
from saliency.rules.biases import BIASED, OF_POSITIONS, bias_of


class BiasGradient(NamedTuple):
    """The bias of an operation times the gradient of its result: what the bias adds to the score, entry by entry."""

    function: Function
    values: Tensor


def _weigh(grids: list[Watching], op: Operation, gradient: Tensor) -> BiasGradient | None:
    bias = bias_of(op)
    if bias is None:
        return None
    values = gradient * bias
    return BiasGradient(op.function, grids[0].batch_first(values) if grids else values)


class FullGradientContext(NotingContext[BiasGradient]):
    r"""The plain backward pass, which notes the bias-gradients :math:`b \odot dy` of what it comes through.

    With the gradient times the activation, at the layer where it ends, they sum to the score.

    >>> import torch
    >>> model, x = torch.nn.Linear(2, 1), torch.ones(1, 2)
    >>> context = FullGradientContext()
    >>> found = saliency(model, x, 0, context_builder=lambda: context, gradient_to_saliency=lambda x: x * x.grad)
    >>> torch.allclose(found.sum() + sum(bias.values.sum() for bias in context.noted), model(x))
    True
    """

    def __init__(self, noted: list[BiasGradient] | None = None) -> None:
        self.grids: list[Watching] = []  # filled by each pass
        super().__init__(BIASED, partial(_weigh, self.grids), [] if noted is None else noted)


def _grid(bias: BiasGradient, x: Tensor) -> Tensor | None:
    """A bias-gradient as (N, C, h, w); ``None`` where it has no positions."""
    if bias.function not in OF_POSITIONS or bias.values.ndim < 3 or len(bias.values) != len(x):
        return None
    try:
        grid = to_channels_first(bias.values, x.shape[2:])
    except ValueError:
        return None
    return grid if grid.ndim == x.ndim else None


def _scaled(term: Tensor) -> Tensor:
    """The absolute values of every channel, each scaled to [0, 1]."""
    values, positions = term.abs(), tuple(range(2, term.ndim))
    low, high = values.amin(positions, keepdim=True), values.amax(positions, keepdim=True)
    return safe_divide(values - low, high - low)


def _full(x: Tensor, biases: list[BiasGradient]) -> Tensor:
    found = sum_channels(_scaled(x * gradient_of(x)))
    for bias in biases:
        grid = _grid(bias, x)
        if grid is not None:
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
    of convolutions and linear layers, positions and class tokens, and implicit ones, :math:`f_l(x) - f_l'(x) x`, of
    normalisations, activations and products. Those without positions, as of a classifier, and those of attention are
    not in the map. (N, 1, h, w), non-negative; at a layer, of the biases behind it. :class:`FullGradientContext` has
    every term. Srinivas and Fleuret, Full-Gradient Representation, NeurIPS 2019. Options and errors: see
    :func:`saliency`.
    """
    if isinstance(saliency_layer, (list, tuple)) and saliency_layer:  # each has biases behind it of its own
        return [full_grad(model, input, target, layer, **options) for layer in saliency_layer]
    biases: list[BiasGradient] = []
    return saliency(
        model,
        input,
        target,
        saliency_layer,
        context_builder=lambda: FullGradientContext(biases),
        gradient_to_saliency=partial(_full, biases=biases),
        **options,
    )
