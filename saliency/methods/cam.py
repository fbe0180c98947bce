"""Class activation maps: channels weighed by their gradient, added up, clamped at zero."""

from torch import Tensor
from torch.nn import Module
from typing_extensions import Unpack

from saliency.engine.call import Input
from saliency.engine.driver import saliency
from saliency.engine.layers import Layers
from saliency.engine.maps import gradient_of, safe_divide, sum_channels
from saliency.engine.signatures import Maps, Options, typed
from saliency.engine.targets import Target


def _mean(x: Tensor) -> Tensor:
    return x.mean(tuple(range(2, x.ndim)), keepdim=True)


def _sum(x: Tensor) -> Tensor:
    return x.sum(tuple(range(2, x.ndim)), keepdim=True)


def _weighted(x: Tensor, weight: Tensor) -> Tensor:
    return sum_channels(x * weight).relu()


def gradient_to_grad_cam_saliency(x: Tensor) -> Tensor:
    r"""Weigh every channel by its mean gradient.

    .. math:: s_{n1u} = \max\{0, \sum_c x_{ncu} \, \frac{1}{|V|} \sum_v dx_{ncv}\}
    """
    return _weighted(x, _mean(gradient_of(x)))


@typed
def grad_cam(
    model: Module, input: Input, target: Target, saliency_layer: Layers = None, **options: Unpack[Options]
) -> Maps:
    r"""Grad-CAM: channels weighed by their mean gradient.

    .. math:: s_{n1u} = \max\{0, \sum_c x_{ncu} \, \frac{1}{|V|} \sum_v dx_{ncv}\}

    (N, 1, h, w), non-negative, at the layer's resolution; ``saliency_layer=None`` is the last layer with spatial
    output. Selvaraju et al., ICCV 2017. Options and errors: see :func:`saliency`.

    >>> from saliency.scenes import make_scene, scene_network
    >>> grad_cam(scene_network(), make_scene(0).image[None], 0, saliency_layer='layer4', resize=True).shape
    torch.Size([1, 1, 128, 128])
    """
    return saliency(model, input, target, saliency_layer, gradient_to_saliency=gradient_to_grad_cam_saliency, **options)


def gradient_to_grad_cam_plus_plus_saliency(x: Tensor) -> Tensor:
    r"""Weigh every channel by its positive gradients, each by its share :math:`\alpha` in the score.

    .. math:: s_{n1u} = \max\{0, \sum_c x_{ncu} \sum_v \alpha_{ncv} \max(0, dx_{ncv})\}, \quad
              \alpha = \frac{dx^2}{2 dx^2 + dx^3 \sum_w x_{ncw}} = \frac{1}{2 + dx \sum_w x_{ncw}}

    The second form of :math:`\alpha`, for :math:`dx \neq 0`, does not underflow. The paper's factor
    :math:`e^{\mathrm{score}}`, one for the whole map, is left out.
    """
    gradient = gradient_of(x)
    return _weighted(x, _sum(safe_divide(gradient.relu(), 2 + gradient * _sum(x))))


@typed
def grad_cam_plus_plus(
    model: Module, input: Input, target: Target, saliency_layer: Layers = None, **options: Unpack[Options]
) -> Maps:
    r"""Grad-CAM++: positive gradients, weighed so that every instance of an object counts.

    .. math:: s_{n1u} = \max\{0, \sum_c x_{ncu} \sum_v \alpha_{ncv} \max(0, dx_{ncv})\}, \quad
              \alpha_{ncv} = \frac{dx_{ncv}^2}{2 dx_{ncv}^2 + dx_{ncv}^3 \sum_w x_{ncw}}

    (N, 1, h, w), non-negative, up to the paper's factor :math:`e^{\mathrm{score}}`.
    Chattopadhay et al., WACV 2018. Options and errors: see :func:`saliency`.
    """
    return saliency(
        model, input, target, saliency_layer, gradient_to_saliency=gradient_to_grad_cam_plus_plus_saliency, **options
    )


def gradient_to_layer_cam_saliency(x: Tensor) -> Tensor:
    r"""Weigh every activation by its own positive gradient.

    .. math:: s_{n1u} = \max\{0, \sum_c x_{ncu} \max(0, dx_{ncu})\}
    """
    return _weighted(x, gradient_of(x).relu())


@typed
def layer_cam(
    model: Module, input: Input, target: Target, saliency_layer: Layers = None, **options: Unpack[Options]
) -> Maps:
    r"""LayerCAM: every activation weighed by its own positive gradient, sharp at early layers too.

    .. math:: s_{n1u} = \max\{0, \sum_c x_{ncu} \max(0, dx_{ncu})\}

    (N, 1, h, w), non-negative. Jiang et al., TIP 2021. Options and errors: see :func:`saliency`.
    """
    return saliency(
        model, input, target, saliency_layer, gradient_to_saliency=gradient_to_layer_cam_saliency, **options
    )


def gradient_to_xgrad_cam_saliency(x: Tensor) -> Tensor:
    r"""Weigh every channel by its gradient, averaged with the activation as weight.

    .. math:: s_{n1u} = \max\{0, \sum_c x_{ncu} \frac{\sum_v x_{ncv} \, dx_{ncv}}{\sum_v x_{ncv}}\}

    A channel whose activations sum to 0 has weight 0.
    """
    return _weighted(x, safe_divide(_sum(x * gradient_of(x)), _sum(x)))


@typed
def xgrad_cam(
    model: Module, input: Input, target: Target, saliency_layer: Layers = None, **options: Unpack[Options]
) -> Maps:
    r"""XGrad-CAM: channel weights that keep Grad-CAM's map sensitive and conserve the score.

    .. math:: s_{n1u} = \max\{0, \sum_c x_{ncu} \frac{\sum_v x_{ncv} \, dx_{ncv}}{\sum_v x_{ncv}}\}

    (N, 1, h, w), non-negative. Fu et al., BMVC 2020. Options and errors: see :func:`saliency`.
    """
    return saliency(
        model, input, target, saliency_layer, gradient_to_saliency=gradient_to_xgrad_cam_saliency, **options
    )


def gradient_to_hires_cam_saliency(x: Tensor) -> Tensor:
    r"""Multiply before adding up: the positive part of the linear approximation.

    .. math:: s_{n1u} = \max\{0, \sum_c x_{ncu} \, dx_{ncu}\}
    """
    return _weighted(x, gradient_of(x))


@typed
def hires_cam(
    model: Module, input: Input, target: Target, saliency_layer: Layers = None, **options: Unpack[Options]
) -> Maps:
    r"""HiResCAM: activation times gradient, position by position, so only what raised the score shows.

    .. math:: s_{n1u} = \max\{0, \sum_c x_{ncu} \, dx_{ncu}\}

    (N, 1, h, w), non-negative. Draelos and Carin, 2020. Options and errors: see :func:`saliency`.
    """
    return saliency(
        model, input, target, saliency_layer, gradient_to_saliency=gradient_to_hires_cam_saliency, **options
    )
