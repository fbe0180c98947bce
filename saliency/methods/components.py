"""CAMs from the statistics of an activation: its first principal component, or what exceeds a channel's mean."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import Module
from typing_extensions import Unpack

from saliency.engine.call import Input
from saliency.engine.checks import is_number, shown
from saliency.engine.driver import saliency
from saliency.engine.layers import Layers
from saliency.engine.maps import safe_divide, sum_channels
from saliency.engine.signatures import Maps, Options, typed
from saliency.engine.state import full_precision
from saliency.engine.targets import Target
from saliency.methods.cam import mean_positions
from saliency.methods.gradients import ActivationOptions, gradient_to_gradient_x_activation

# Kernels k(u, v) of kernel PCA, from the inner products p_uv between the channels of two positions, and gamma.
KERNELS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "linear": lambda p, gamma: p,
    "poly": lambda p, gamma: (gamma * p + 1) ** 3,
    "rbf": lambda p, gamma: torch.exp(-gamma * (_squares(p).mT + _squares(p) - 2 * p).clamp(min=0)),
    "sigmoid": lambda p, gamma: torch.tanh(gamma * p + 1),
    "cosine": lambda p, gamma: p / (_squares(p).mT * _squares(p)).sqrt().clamp(min=torch.finfo(p.dtype).tiny),
}


def _squares(p: Tensor) -> Tensor:
    return p.diagonal(dim1=1, dim2=2)[:, None]


def _rows(x: Tensor, centred: bool) -> Tensor:
    """The positions of an activation (N, C, h, w) as (N, L, C), in float32 or wider; optionally centred."""
    rows = x.flatten(2).mT.to(torch.promote_types(x.dtype, torch.float32))
    return rows - rows.mean(1, keepdim=True) if centred else rows


def _first(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """The largest eigenvalue (N, 1) of symmetric matrices and its eigenvector (N, size); NaN where not finite."""
    finite = matrices.isfinite().all(2).all(1)[:, None]
    values, vectors = torch.linalg.eigh(torch.where(finite[..., None], matrices, 0))
    return values[:, -1:].clamp(min=0), torch.where(finite, vectors[..., -1], torch.nan)


def _component(rows: Tensor) -> Tensor:
    """The projections (N, L) of (N, L, C) onto their first right singular vector."""
    scale = rows.abs().amax((1, 2), keepdim=True)
    rows = safe_divide(rows, scale)  # so that no square overflows or underflows
    if rows.shape[1] > rows.shape[2]:  # the smaller of the two Gram matrices is decomposed
        return (rows @ _first(rows.mT @ rows)[1][..., None] * scale).squeeze(2)
    value, vector = _first(rows @ rows.mT)
    return vector * value.sqrt() * scale.squeeze(2)


def _oriented(component: Tensor, rows: Tensor, x: Tensor) -> Tensor:
    """A component (N, L) as a map, with the sign that makes it positive where the vectors are long."""
    lengths = safe_divide(rows, rows.abs().amax((1, 2), keepdim=True)).square().sum(2)
    agrees = (component * lengths).sum(1, keepdim=True) >= 0
    return torch.where(agrees, component, -component).to(x.dtype).view(len(x), 1, *x.shape[2:])


def _eigen(x: Tensor, attribution: Callable[[Tensor], Tensor], centred: bool) -> Tensor:
    with full_precision(x.device):
        rows = _rows(attribution(x), centred)
        return _oriented(_component(rows), rows, x)


def _kernel(x: Tensor, kernel: str, gamma: float | None) -> Tensor:
    with full_precision(x.device):
        rows = _rows(x, centred=True)
        k = KERNELS[kernel](rows @ rows.mT, 1 / x.shape[1] if gamma is None else float(gamma))
        mean = k.mean(1, keepdim=True)
        value, vector = _first(k - mean - mean.mT + mean.mean(2, keepdim=True))
        return _oriented(vector * value.sqrt(), rows, x)


# This and the functions below without `typed` have an optional target.
def eigen_cam(
    model: Module,
    input: Input,
    target: Target = None,
    saliency_layer: Layers = None,
    **options: Unpack[ActivationOptions],
) -> Maps:
    r"""Eigen-CAM: the first principal component of a layer's activation, whatever the target.

    .. math:: s_{n1u} = \sum_c x_{ncu} v_{nc}, \quad x_n = U \Sigma V^T \in \mathbb{R}^{|V| \times C}

    with the first column :math:`v` of V; channels are not centred, so that the map is non-negative behind a ReLU.
    The sign of :math:`v` is arbitrary: it is that by which the map is positive where the activation is strong,
    :math:`\sum_u s_u \sum_c x_{cu}^2 \ge 0`. Tokens of a transformer have a mean that outweighs what differs: the map
    is then how much of it each has, by definition, and largest in the background; :func:`kpca_cam` with
    ``kernel='linear'`` centres. (N, 1, h, w). The decomposition waits for the device.
    Muhammad and Yeasin, IJCNN 2020. Options and errors: see :func:`saliency`.
    """
    to_map = partial(_eigen, attribution=lambda x: x, centred=False)
    return saliency(
        model, input, target, saliency_layer, gradient_to_saliency=to_map, get_backward_gradient=None, **options
    )


@typed
def eigen_grad_cam(
    model: Module, input: Input, target: Target, saliency_layer: Layers = None, **options: Unpack[Options]
) -> Maps:
    r"""Eigen-Grad-CAM: the first principal component of activation times gradient.

    .. math:: s_{n1u} = \sum_c (a_{ncu} - \bar a_{nc}) v_{nc}, \quad a_{ncu} = x_{ncu} \, dx_{ncu}

    with the first right singular vector :math:`v` of the centred :math:`a_n \in \mathbb{R}^{|V| \times C}`. The
    sign is chosen as in :func:`eigen_cam`: positive where :math:`a` is large, whether it raises or lowers the
    score. (N, 1, h, w), signed, with mean 0. Gildenblat et al., pytorch-grad-cam, 2021. Options and errors: see
    :func:`saliency`.
    """
    to_map = partial(_eigen, attribution=gradient_to_gradient_x_activation, centred=True)
    return saliency(model, input, target, saliency_layer, gradient_to_saliency=to_map, **options)


def kpca_cam(
    model: Module,
    input: Input,
    target: Target = None,
    saliency_layer: Layers = None,
    kernel: str = "sigmoid",
    gamma: float | None = None,
    **options: Unpack[ActivationOptions],
) -> Maps:
    r"""KPCA-CAM: the first kernel principal component of a layer's activation; no target is used.

    .. math:: s_{n1u} = \sqrt{\lambda} \, w_u, \quad \hat K w = \lambda w, \quad \hat K = H K H, \quad
              K_{uv} = k(x_u - \bar x, x_v - \bar x)

    with the largest eigenvalue :math:`\lambda` and the centring matrix H. Kernels: ``'linear'`` (Eigen-CAM of
    centred channels), ``'poly'`` of degree 3, ``'rbf'``, ``'sigmoid'``, :math:`\tanh(\gamma \, a \cdot b + 1)`, and
    ``'cosine'``; ``gamma`` defaults to 1 / C. The sign is chosen as in :func:`eigen_cam`. (N, 1, h, w), signed,
    with mean 0. Memory grows as (h w)^2. Karmani et al., KPCA-CAM, 2024. Options and errors: see :func:`saliency`.
    """
    if not (isinstance(kernel, str) and kernel in KERNELS):
        raise ValueError(f"kernel={shown(kernel)} is not a valid kernel; expected one of {', '.join(KERNELS)}.")
    if gamma is not None and not (is_number(gamma) and gamma > 0):
        raise ValueError(f"gamma={shown(gamma)} is not a valid kernel scale; expected a number > 0 or None.")
    to_map = partial(_kernel, kernel=kernel, gamma=gamma)
    return saliency(
        model, input, target, saliency_layer, gradient_to_saliency=to_map, get_backward_gradient=None, **options
    )


def _far_above(x: Tensor, k: float) -> Tensor:
    mean = mean_positions(x)
    deviation = mean_positions((x - mean).square()).sqrt()
    return sum_channels((x > mean + k * deviation) * mean)


def fem(
    model: Module,
    input: Input,
    target: Target = None,
    saliency_layer: Layers = None,
    k: float = 2.0,
    **options: Unpack[ActivationOptions],
) -> Maps:
    r"""FEM: where channels exceed their mean by k standard deviations, weighted by that mean; no target is used.

    .. math:: s_{n1u} = \sum_c \mu_{nc} \, [x_{ncu} > \mu_{nc} + k \, \sigma_{nc}]

    with a channel's mean :math:`\mu` and standard deviation :math:`\sigma` over the positions. (N, 1, h, w),
    non-negative behind a ReLU. Ahmed Asif Fuad et al., Features Understanding in 3D CNNs, IPTA 2020. Options and
    errors: see :func:`saliency`.
    """
    if not is_number(k):
        raise ValueError(f"k={shown(k)} is not a number of standard deviations; expected a number.")
    to_map = partial(_far_above, k=float(k))
    return saliency(
        model, input, target, saliency_layer, gradient_to_saliency=to_map, get_backward_gradient=None, **options
    )
