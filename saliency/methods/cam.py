"""Class activation maps: channels weighted by their gradient, summed, and clamped at zero."""

from collections.abc import Callable
from functools import partial

from torch import Tensor
from torch.nn import Module
from typing_extensions import Unpack

from saliency.engine.call import Input
from saliency.engine.driver import saliency
from saliency.engine.layers import Layers
from saliency.engine.maps import Attribution, Reduction, gradient_of, positive_sum, safe_divide
from saliency.engine.signatures import Maps, Options, typed
from saliency.engine.targets import Target


def mean_positions(x: Tensor) -> Tensor:
    """The mean of every channel, (N, C, 1, ...)."""
    return x.mean(tuple(range(2, x.ndim)), keepdim=True)


def sum_positions(x: Tensor) -> Tensor:
    """The sum of every channel, (N, C, 1, ...)."""
    return x.sum(tuple(range(2, x.ndim)), keepdim=True)


def reduced(attribution: Tensor, reduction: Reduction) -> Tensor:
    """The map that a reduction makes of an attribution; ``None`` returns the attribution itself."""
    return Attribution(reduction, of="activation")(attribution)


def reducing(function: Callable[..., Tensor], reduction: Reduction) -> Callable[[Tensor], Tensor]:
    """A function of an activation and its gradient that ends in the caller's own reduction.

    Raises ``ValueError`` for an invalid reduction.
    """
    return partial(function, reduction=Attribution(reduction).reduction)


def gradient_to_grad_cam_saliency(x: Tensor, reduction: Reduction = positive_sum) -> Tensor:
    r"""Weight every channel by its mean gradient.

    .. math:: s_{n1u} = \max\{0, \sum_c x_{ncu} \, \frac{1}{|V|} \sum_v dx_{ncv}\}
    """
    return reduced(x * mean_positions(gradient_of(x)), reduction)


@typed
def grad_cam(
    model: Module,
    input: Input,
    target: Target,
    saliency_layer: Layers = None,
    reduction: Reduction = positive_sum,
    **options: Unpack[Options],
) -> Maps:
    r"""Grad-CAM: channels weighted by their mean gradient.

    .. math:: s_{n1u} = \max\{0, \sum_c x_{ncu} \, \frac{1}{|V|} \sum_v dx_{ncv}\}

    (N, 1, h, w), non-negative, at the layer's resolution; ``saliency_layer=None`` selects the last layer with
    spatial output. ``reduction=sum_channels`` omits the ReLU of any CAM and gives a signed map; ``reduction=None``
    returns the weighted channels, (N, C, h, w). Selvaraju et al., ICCV 2017. Options and errors: see :func:`saliency`.

    >>> from saliency.scenes import make_scene, scene_network
    >>> grad_cam(scene_network(), make_scene(0).image[None], 0, saliency_layer='layer4', resize=True).shape
    torch.Size([1, 1, 128, 128])
    """
    to_map = reducing(gradient_to_grad_cam_saliency, reduction)
    return saliency(model, input, target, saliency_layer, gradient_to_saliency=to_map, **options)


def gradient_to_grad_cam_plus_plus_saliency(x: Tensor, reduction: Reduction = positive_sum) -> Tensor:
    r"""Weight every channel by its positive gradients, each with a coefficient :math:`\alpha`.

    .. math:: s_{n1u} = \max\{0, \sum_c x_{ncu} \sum_v \alpha_{ncv} \max(0, dx_{ncv})\}, \quad
              \alpha = \frac{dx^2}{2 dx^2 + dx^3 \sum_w x_{ncw}} = \frac{1}{2 + dx \sum_w x_{ncw}}

    The second form of :math:`\alpha`, for :math:`dx \neq 0`, does not underflow. The paper's factor
    :math:`e^{\mathrm{score}}`, constant over the map, is omitted.
    """
    gradient = gradient_of(x)
    return reduced(x * sum_positions(safe_divide(gradient.relu(), 2 + gradient * sum_positions(x))), reduction)


@typed
def grad_cam_plus_plus(
    model: Module,
    input: Input,
    target: Target,
    saliency_layer: Layers = None,
    reduction: Reduction = positive_sum,
    **options: Unpack[Options],
) -> Maps:
    r"""Grad-CAM++: positive gradients, weighted so that every instance of a class counts.

    .. math:: s_{n1u} = \max\{0, \sum_c x_{ncu} \sum_v \alpha_{ncv} \max(0, dx_{ncv})\}, \quad
              \alpha_{ncv} = \frac{dx_{ncv}^2}{2 dx_{ncv}^2 + dx_{ncv}^3 \sum_w x_{ncw}}

    (N, 1, h, w), non-negative, up to the paper's factor :math:`e^{\mathrm{score}}`.
    Chattopadhay et al., WACV 2018. Options and errors: see :func:`saliency`.
    """
    to_map = reducing(gradient_to_grad_cam_plus_plus_saliency, reduction)
    return saliency(model, input, target, saliency_layer, gradient_to_saliency=to_map, **options)


def gradient_to_layer_cam_saliency(x: Tensor, reduction: Reduction = positive_sum) -> Tensor:
    r"""Weight every activation by its own positive gradient.

    .. math:: s_{n1u} = \max\{0, \sum_c x_{ncu} \max(0, dx_{ncu})\}
    """
    return reduced(x * gradient_of(x).relu(), reduction)


@typed
def layer_cam(
    model: Module,
    input: Input,
    target: Target,
    saliency_layer: Layers = None,
    reduction: Reduction = positive_sum,
    **options: Unpack[Options],
) -> Maps:
    r"""LayerCAM: every activation weighted by its own positive gradient; sharp at early layers too.

    .. math:: s_{n1u} = \max\{0, \sum_c x_{ncu} \max(0, dx_{ncu})\}

    (N, 1, h, w), non-negative. Jiang et al., TIP 2021. Options and errors: see :func:`saliency`.
    """
    to_map = reducing(gradient_to_layer_cam_saliency, reduction)
    return saliency(model, input, target, saliency_layer, gradient_to_saliency=to_map, **options)


def gradient_to_xgrad_cam_saliency(x: Tensor, reduction: Reduction = positive_sum) -> Tensor:
    r"""Weight every channel by the activation-weighted mean of its gradient.

    .. math:: s_{n1u} = \max\{0, \sum_c x_{ncu} \frac{\sum_v x_{ncv} \, dx_{ncv}}{\sum_v x_{ncv}}\}

    A channel whose activations sum to 0 has weight 0.
    """
    return reduced(x * safe_divide(sum_positions(x * gradient_of(x)), sum_positions(x)), reduction)


@typed
def xgrad_cam(
    model: Module,
    input: Input,
    target: Target,
    saliency_layer: Layers = None,
    reduction: Reduction = positive_sum,
    **options: Unpack[Options],
) -> Maps:
    r"""XGrad-CAM: channel weights derived from the axioms of sensitivity and conservation.

    .. math:: s_{n1u} = \max\{0, \sum_c x_{ncu} \frac{\sum_v x_{ncv} \, dx_{ncv}}{\sum_v x_{ncv}}\}

    (N, 1, h, w), non-negative. Fu et al., BMVC 2020. Options and errors: see :func:`saliency`.
    """
    to_map = reducing(gradient_to_xgrad_cam_saliency, reduction)
    return saliency(model, input, target, saliency_layer, gradient_to_saliency=to_map, **options)


def gradient_to_hires_cam_saliency(x: Tensor, reduction: Reduction = positive_sum) -> Tensor:
    r"""Multiply elementwise, then sum over channels: the positive part of the linear approximation.

    .. math:: s_{n1u} = \max\{0, \sum_c x_{ncu} \, dx_{ncu}\}
    """
    return reduced(x * gradient_of(x), reduction)


@typed
def hires_cam(
    model: Module,
    input: Input,
    target: Target,
    saliency_layer: Layers = None,
    reduction: Reduction = positive_sum,
    **options: Unpack[Options],
) -> Maps:
    r"""HiResCAM: activation times gradient at each position, so that only positions that raise the score appear.

    .. math:: s_{n1u} = \max\{0, \sum_c x_{ncu} \, dx_{ncu}\}

    (N, 1, h, w), non-negative. Draelos and Carin, 2020. Options and errors: see :func:`saliency`.
    """
    to_map = reducing(gradient_to_hires_cam_saliency, reduction)
    return saliency(model, input, target, saliency_layer, gradient_to_saliency=to_map, **options)
