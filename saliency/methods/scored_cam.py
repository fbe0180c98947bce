"""CAMs by scores: channels weighted by their effect on the score, without a gradient."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module
from typing_extensions import Unpack

from saliency.engine.call import Input
from saliency.engine.checks import check_count, check_seed, describe, is_number, shown
from saliency.engine.layers import Layers
from saliency.engine.maps import Reduction, positive_sum, safe_divide, sum_channels
from saliency.engine.signatures import Maps, typed
from saliency.engine.state import make_generator
from saliency.engine.targets import Target
from saliency.methods.grids import put_grid
from saliency.methods.perturbing import PER_EVAL, ExplainOptions, Perturbed, at, explain


def _weighed(weights: Tensor, p: Perturbed) -> Tensor:
    """Attributions (N, K, C, h, w) of channels with weights (N, C, K)."""
    x = p.grid
    return weights.mT.to(x.dtype)[(...,) + (None,) * (x.ndim - 2)] * x[:, None]


def _masked(p: Perturbed, change: Callable[[Tensor], Tensor] = torch.Tensor.clone) -> Tensor:
    """Scores (N, C, K) of the image masked by each channel, resized, scaled to [0, 1], and changed by ``change``."""
    image, x = p.call.image.detach(), p.grid
    positions = tuple(range(2, image.ndim))
    if not 3 <= x.ndim == image.ndim <= 5 or len(x) != len(image):
        raise ValueError(f"input={describe(image)} cannot be masked by a layer's channels; expected (N, C, h, w).")
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(positions)]

    def make(samples: Tensor, numbers: Tensor) -> Tensor:
        n = at(samples, image)
        mask = F.interpolate(x[n, at(numbers, x)][:, None], image.shape[2:], mode=mode, align_corners=False)
        low, high = mask.amin(positions, keepdim=True), mask.amax(positions, keepdim=True)
        return image[n] * change(safe_divide(mask - low, high - low))

    return p.scores(x.shape[1], make)


@typed
def score_cam(
    model: Module,
    input: Input,
    target: Target,
    saliency_layer: Layers = None,
    perturbations_per_eval: int = PER_EVAL,
    reduction: Reduction = positive_sum,
    **options: Unpack[ExplainOptions],
) -> Maps:
    r"""Score-CAM: channels weighted by the score of the image masked by each of them.

    .. math:: s_{n1u} = \max\{0, \sum_c w_{nc} \, x_{ncu}\}, \quad w_{nc} = \operatorname{softmax}_c f(X_n \odot m_{nc})

    with :math:`m` the channel resized to the image and scaled to [0, 1]. (N, 1, h, w), non-negative.
    Wang et al., Score-CAM, CVPR workshop 2020. Options: see :func:`~saliency.methods.perturbing.explain`.
    """

    def attribute(p: Perturbed) -> Tensor:
        return _weighed(_masked(p).softmax(1), p)

    arguments = (model, input, target, saliency_layer, attribute, reduction, perturbations_per_eval, True, True)
    return explain(*arguments, **options)


@typed
def ss_cam(
    model: Module,
    input: Input,
    target: Target,
    saliency_layer: Layers = None,
    num_samples: int = 35,
    std: float = 2.0,
    seed: int = 0,
    perturbations_per_eval: int = PER_EVAL,
    reduction: Reduction = positive_sum,
    **options: Unpack[ExplainOptions],
) -> Maps:
    r"""SS-CAM: Score-CAM with scores averaged over noisy masks.

    .. math:: w_{nc} = \operatorname{softmax}_c \frac{1}{T} \sum_t f(X_n \odot (m_{nc} + \epsilon_t)), \quad
              \epsilon_t \sim N(0, \sigma^2)

    The noise has its own random generator, and is the same for all channels and samples. (N, 1, h, w), non-negative.
    Wang et al., SS-CAM, 2020. Options: see :func:`~saliency.methods.perturbing.explain`.
    """
    check_count("num_samples", num_samples)
    check_seed(seed)
    if not is_number(std) or std < 0:
        raise ValueError(f"std={shown(std)} is not a standard deviation; expected a number >= 0.")

    def attribute(p: Perturbed) -> Tensor:
        image = p.call.image
        generator = make_generator(image.device, seed)
        found = []
        for _ in range(num_samples):
            noise = torch.empty(1, 1, *image.shape[2:], device=image.device).normal_(0, std, generator=generator)
            found.append(_masked(p, partial(torch.add, noise.to(image.dtype))))
        return _weighed(torch.stack(found).mean(0).softmax(1), p)

    arguments = (model, input, target, saliency_layer, attribute, reduction, perturbations_per_eval, True, True)
    return explain(*arguments, **options)


@typed
def is_cam(
    model: Module,
    input: Input,
    target: Target,
    saliency_layer: Layers = None,
    num_samples: int = 10,
    perturbations_per_eval: int = PER_EVAL,
    reduction: Reduction = positive_sum,
    **options: Unpack[ExplainOptions],
) -> Maps:
    r"""IS-CAM: Score-CAM with scores averaged over increasing strengths of the mask.

    .. math:: w_{nc} = \operatorname{softmax}_c \frac{1}{T} \sum_{t=1}^T f(X_n \odot \tfrac{t}{T} m_{nc})

    (N, 1, h, w), non-negative. Naidu et al., IS-CAM, 2020. Options: see :func:`~saliency.methods.perturbing.explain`.
    """
    check_count("num_samples", num_samples)

    def attribute(p: Perturbed) -> Tensor:
        found = [_masked(p, partial(torch.mul, other=(t + 1) / num_samples)) for t in range(num_samples)]
        return _weighed(torch.stack(found).mean(0).softmax(1), p)

    arguments = (model, input, target, saliency_layer, attribute, reduction, perturbations_per_eval, True, True)
    return explain(*arguments, **options)


@typed
def ablation_cam(
    model: Module,
    input: Input,
    target: Target,
    saliency_layer: Layers = None,
    perturbations_per_eval: int = PER_EVAL,
    reduction: Reduction = positive_sum,
    **options: Unpack[ExplainOptions],
) -> Maps:
    r"""Ablation-CAM: channels weighted by how far the score falls without them.

    .. math:: s_{n1u} = \max\{0, \sum_c w_{nc} \, x_{ncu}\}, \quad
              w_{nc} = \frac{f(x_n) - f(x_{n, c \leftarrow 0})}{f(x_n)}

    The front of the network runs once per sample. (N, 1, h, w), non-negative. Desai and Ramaswamy, Ablation-CAM, WACV
    2020. Options: see :func:`~saliency.methods.perturbing.explain`.
    """

    def attribute(p: Perturbed) -> Tensor:
        index = p.entries

        def make(samples: Tensor, numbers: Tensor) -> Tensor:
            x = p.x[at(samples, p.x)]
            return x.flatten(1).scatter_(1, index[at(numbers, x)].flatten(1), 0).view(x.shape)

        known = p.known()
        return _weighed(safe_divide(known - p.scores(len(index), make), known), p)

    arguments = (model, input, target, saliency_layer, attribute, reduction, perturbations_per_eval, True)
    return explain(*arguments, **options)


@typed
def recipro_cam(
    model: Module,
    input: Input,
    target: Target,
    saliency_layer: Layers = None,
    perturbations_per_eval: int = PER_EVAL,
    **options: Unpack[ExplainOptions],
) -> Maps:
    r"""Recipro-CAM: the score of the network when it sees a layer's activation around one position only.

    .. math:: s_{n1u} = f(x_n \odot g_u)

    with a 3 x 3 Gaussian :math:`g_u` around u: 1/4 at the centre, 1/8 at the sides, 1/16 at the corners. The
    network behind the layer runs once per position of the layer. (N, 1, h, w), in units of the score (the paper's
    is the softmax's: explain ``lambda output: output.softmax(1)[:, c]``). Byun and Lee, Recipro-CAM, 2022. Options:
    see :func:`~saliency.methods.perturbing.explain`.
    """

    def attribute(p: Perturbed) -> Tensor:
        x = p.grid
        index = p.entries
        near = [_neighbours(side, x) for side in x.shape[2:]]
        places = torch.ones(x.shape[2:], device="cpu").nonzero()

        def make(samples: Tensor, numbers: Tensor) -> Tensor:
            n, mask = at(samples, x), x.new_ones(len(numbers), *[1] * (x.ndim - 1))
            for axis, (weights, place) in enumerate(zip(near, places[numbers].unbind(1), strict=True), 2):
                mask = mask * weights[at(place, x)].view(len(n), *[1] * (axis - 1), -1, *[1] * (x.ndim - axis - 1))
            return put_grid(p.x[n], index, x[n] * mask)

        found = p.scores(len(places), make)
        return found.mT.reshape(len(x), -1, 1, *x.shape[2:])

    arguments = (model, input, target, saliency_layer, attribute, sum_channels, perturbations_per_eval, True)
    return explain(*arguments, **options)


def _neighbours(side: int, x: Tensor) -> Tensor:
    """The weight of each position of an axis around each other, (side, side): 1/2 at it, 1/4 beside it."""
    position = torch.arange(side, device=x.device)
    distance = (position[:, None] - position).abs()
    weight: Tensor = torch.where(distance == 0, 0.5, torch.where(distance == 1, 0.25, 0.0))
    return weight.to(x.dtype)
