"""The gradient family: the gradient itself, and its product with the activation."""

from torch import Tensor
from torch.nn import Module
from typing_extensions import Unpack

from saliency.engine.call import Input
from saliency.engine.driver import saliency
from saliency.engine.layers import Layers
from saliency.engine.maps import Attribution, Reduction, gradient_of, sum_channels
from saliency.engine.record import ContextBuilder
from saliency.engine.signatures import MapOptions, Maps, Options, PassOptions, RuleOptions, typed
from saliency.engine.targets import Target


class GradientOptions(Options, RuleOptions, total=False):
    """All options of the driver."""


class ActivationOptions(MapOptions, PassOptions, total=False):
    """Options of a method without a backward pass."""

    context_builder: ContextBuilder


@typed
def gradient(
    model: Module, input: Input, target: Target, saliency_layer: Layers = "", **options: Unpack[GradientOptions]
) -> Maps:
    r"""Gradient: how sensitive the score is to each position.

    .. math:: s_{n1u} = \max_c |dx_{ncu}|

    (N, 1, h, w), non-negative. Simonyan et al., ICLR workshop 2014. Options and errors: see :func:`saliency`.

    >>> from saliency.scenes import make_scene, scene_network
    >>> gradient(scene_network(), make_scene(0).image[None], 0).shape
    torch.Size([1, 1, 128, 128])
    """
    return saliency(model, input, target, saliency_layer, **options)


def gradient_to_gradient_x_activation(x: Tensor) -> Tensor:
    r"""The attribution :math:`a_{ncu} = x_{ncu} \, dx_{ncu}`, of the shape of ``x``."""
    return x * gradient_of(x)


@typed
def gradient_x_activation(
    model: Module,
    input: Input,
    target: Target,
    saliency_layer: Layers = "",
    reduction: Reduction = sum_channels,
    **options: Unpack[Options],
) -> Maps:
    r"""Gradient x activation: the first-order contribution of each activation to the score.

    .. math:: a_{ncu} = x_{ncu} \, dx_{ncu}

    ``reduction=None`` returns this signed attribution in the layer's own shape; the default sums over the channels,
    which is :func:`linear_approx`. In a piecewise linear network without biases, it sums to the score.
    Shrikumar et al., Not Just a Black Box, 2016. Options and errors: see :func:`saliency`.

    >>> import torch
    >>> gradient_x_activation(torch.nn.Flatten(), torch.tensor([[3.0, 4.0]]), 1, reduction=None)
    tensor([[0., 4.]])
    """
    return saliency(model, input, target, saliency_layer, gradient_to_saliency=Attribution(reduction), **options)


def gradient_to_linear_approx_saliency(x: Tensor) -> Tensor:
    r"""The first-order approximation of the score at each position.

    .. math:: s_{n1u} = \sum_c x_{ncu} \, dx_{ncu}
    """
    return sum_channels(gradient_to_gradient_x_activation(x))


@typed
def linear_approx(
    model: Module, input: Input, target: Target, saliency_layer: Layers = "", **options: Unpack[Options]
) -> Maps:
    r"""Linear approximation: the first-order Taylor term of the score at each position.

    .. math:: s_{n1u} = \sum_c x_{ncu} \, dx_{ncu}

    (N, 1, h, w), signed. Kindermans et al., Investigating the Influence of Noise and Distractors, 2016.
    Options and errors: see :func:`saliency`.
    """
    return saliency(
        model, input, target, saliency_layer, gradient_to_saliency=gradient_to_linear_approx_saliency, **options
    )


# Not `typed`: its target is optional.
def activation(
    model: Module,
    input: Input,
    target: Target = None,
    saliency_layer: Layers = None,
    reduction: Reduction = sum_channels,
    **options: Unpack[ActivationOptions],
) -> Maps:
    r"""Activation: the sum of a layer's channels; no target is used and no backward pass runs.

    .. math:: s_{n1u} = \sum_c x_{ncu}

    ``reduction=None`` returns the activation in the layer's own shape. K targets give K identical maps.
    Options and errors: see :func:`saliency`.
    """
    return saliency(
        model,
        input,
        target,
        saliency_layer,
        gradient_to_saliency=Attribution(reduction, of="activation"),
        get_backward_gradient=None,
        **options,
    )
