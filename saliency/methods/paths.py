"""Path methods: gradients accumulated along a path from baselines to the input, or over noise around it."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import Module
from typing_extensions import Unpack

from saliency.engine import folds, paths
from saliency.engine.call import Input, check_inputs
from saliency.engine.checks import shown
from saliency.engine.driver import saliency
from saliency.engine.layers import Layers
from saliency.engine.maps import Attribution, Reduction, max_channels, sum_channels
from saliency.engine.paths import Baselines
from saliency.engine.signatures import Maps, PathOptions, typed
from saliency.engine.targets import Target

Distribution: TypeAlias = Tensor | Sequence[Tensor] | Callable[..., Tensor | Sequence[Tensor]] | None

POWERS = {"mean": folds.MEAN, "squared": folds.SQUARED, "variance": folds.VARIANCE}


@typed
def integrated_gradients(
    model: Module,
    input: Input,
    target: Target,
    saliency_layer: Layers = "",
    baselines: Baselines = None,
    n_steps: int = 50,
    method: str = "gausslegendre",
    reduction: Reduction = sum_channels,
    **options: Unpack[PathOptions],
) -> Maps:
    r"""Integrated gradients: the contribution of each position along the straight line from the baselines.

    .. math:: a = (x - x') \int_0^1 \frac{\partial f}{\partial x}\bigl(x' + \alpha (x - x')\bigr) \, d\alpha, \quad
              s_{n1u} = \sum_c a_{ncu}

    The attribution sums to the change of the score, up to quadrature error. At a layer, the line runs through its
    activation, starting from that of the input's ``baselines`` (0 by default); the layers in front of it run once.
    ``reduction=None`` returns the attribution itself. Sundararajan et al., Axiomatic Attribution for Deep Networks,
    ICML 2017. Options and errors: see :func:`saliency` and :func:`~saliency.engine.paths.line`.

    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> model.weight.data.copy_(torch.tensor([[2.0, 3.0]]))
    tensor([[2., 3.]])
    >>> integrated_gradients(model, torch.tensor([[1.0, -1.0]]), 0, reduction=None)
    tensor([[ 2., -3.]])
    """
    line = paths.line(baselines, n_steps, method, at_layer=True, times="displacement")
    return saliency(
        model, input, target, saliency_layer, gradient_to_saliency=Attribution(reduction), path=line, **options
    )


@typed
def internal_influence(
    model: Module,
    input: Input,
    target: Target,
    saliency_layer: Layers = None,
    baselines: Baselines = None,
    n_steps: int = 50,
    method: str = "gausslegendre",
    reduction: Reduction = sum_channels,
    **options: Unpack[PathOptions],
) -> Maps:
    r"""Internal influence: the mean gradient at a layer, as the input moves from the baselines to itself.

    .. math:: a = \int_0^1 \frac{\partial f}{\partial y}\bigl(y(x' + \alpha (x - x'))\bigr) \, d\alpha

    (N, 1, h, w), signed, summed over the channels; ``reduction=None`` returns the layer's shape. Leino et al.,
    Influence-Directed Explanations for Deep Convolutional Networks, ITC 2018. Options and errors: see :func:`saliency`.
    """
    line = paths.line(baselines, n_steps, method, times="nothing")
    return saliency(
        model, input, target, saliency_layer, gradient_to_saliency=Attribution(reduction), path=line, **options
    )


@typed
def conductance(
    model: Module,
    input: Input,
    target: Target,
    saliency_layer: Layers = None,
    baselines: Baselines = None,
    n_steps: int = 50,
    method: str = "gausslegendre",
    reduction: Reduction = sum_channels,
    **options: Unpack[PathOptions],
) -> Maps:
    r"""Conductance: how much of the score's change flows through each neuron of a layer.

    .. math:: a = \sum_{t=0}^{T-1} \frac{\partial f}{\partial y}(y_t) \, (y_{t+1} - y_t)

    with the layer's activation :math:`y_t` at ``n_steps`` + 1 inputs from the baselines to the input: the gradient is
    taken at the start of each step. Sums to the change of the score, with an error that falls as 1/T. Signed;
    ``reduction=None`` returns the layer's shape. Dhamdhere et al., How Important Is a Neuron?, ICLR 2019.
    Options and errors: see :func:`saliency`.
    """
    line = paths.line(baselines, n_steps, method, fold=folds.CONDUCTANCE)
    return saliency(
        model, input, target, saliency_layer, gradient_to_saliency=Attribution(reduction), path=line, **options
    )


@typed
def gradient_shap(
    model: Module,
    input: Input,
    target: Target,
    saliency_layer: Layers = "",
    baselines: Distribution = None,
    n_samples: int = 5,
    stdevs: float | Sequence[float] = 0.0,
    seed: int = 0,
    reduction: Reduction = sum_channels,
    **options: Unpack[PathOptions],
) -> Maps:
    r"""GradientSHAP: expected gradients between a distribution of baselines and noisy copies of the input.

    .. math:: a = \frac{1}{T} \sum_t \frac{\partial f}{\partial y}(z_t) \, (y(x + \epsilon_t) - y(x'_t)), \quad
              z_t = \alpha_t (x + \epsilon_t) + (1 - \alpha_t) x'_t

    ``baselines`` is a tensor (M, ...), one per input, or a function that returns them from the inputs; 0 by default.
    Draws have their own random generator. Approximates Shapley values; signed, ``reduction=None`` returns the layer's
    shape. Lundberg and Lee, A Unified Approach to Interpreting Model Predictions, NeurIPS 2017.
    Options and errors: see :func:`saliency` and :func:`~saliency.engine.paths.between`.
    """
    between = paths.between(distribution_of(baselines, input), n_samples, stdevs, seed)
    return saliency(
        model, input, target, saliency_layer, gradient_to_saliency=Attribution(reduction), path=between, **options
    )


@typed
def expected_gradients(
    model: Module,
    input: Input,
    target: Target,
    saliency_layer: Layers = "",
    baselines: Distribution = None,
    n_samples: int = 50,
    seed: int = 0,
    reduction: Reduction = sum_channels,
    **options: Unpack[PathOptions],
) -> Maps:
    r"""Expected gradients: integrated gradients, averaged over a distribution of baselines.

    .. math:: a = \frac{1}{T} \sum_t \frac{\partial f}{\partial y}(z_t) \, (y(x) - y(x'_t)), \quad
              z_t = \alpha_t x + (1 - \alpha_t) x'_t

    with a random baseline and :math:`\alpha` for each step: :func:`gradient_shap` without noise. Signed;
    ``reduction=None`` returns the layer's shape. Erion et al., Improving Performance of Deep Learning Models with
    Axiomatic Attribution Priors and Expected Gradients, Nature Machine Intelligence 2021. Options and errors: see
    :func:`gradient_shap`.
    """
    return gradient_shap(
        model, input, target, saliency_layer, baselines, n_samples, seed=seed, reduction=reduction, **options
    )


def distribution_of(baselines: Distribution, input: Input) -> Tensor | Sequence[Tensor]:
    """A tensor (M, ...) of baselines for each input that moves."""
    moving = [x for x in check_inputs(input) if x.is_floating_point()]
    if callable(baselines) and not isinstance(baselines, Tensor):
        return baselines(*moving)
    return [torch.zeros_like(x[:1]) for x in moving] if baselines is None else baselines


@typed
def smooth_gradient(
    model: Module,
    input: Input,
    target: Target,
    saliency_layer: Layers = "",
    n_samples: int = 25,
    stdevs: float | Sequence[float] = 0.15,
    seed: int = 0,
    power: str = "mean",
    reduction: Reduction = max_channels,
    **options: Unpack[PathOptions],
) -> Maps:
    r"""SmoothGrad: the gradient averaged over noisy copies of the input.

    .. math:: s_{n1u} = \max_c |a_{ncu}|, \quad a = \frac{1}{T} \sum_t dx_t, \quad
              \frac{1}{T} \sum_t dx_t^2 \quad \text{or} \quad \mathrm{Var}_t(dx_t)

    for ``power`` ``'mean'``, ``'squared'`` (SmoothGrad-Squared) and ``'variance'`` (VarGrad); ``stdevs`` is in the
    input's units. ``reduction=None`` returns the attribution itself. Smilkov et al., SmoothGrad, 2017; Hooker et al.,
    A Benchmark for Interpretability Methods, NeurIPS 2019; Adebayo et al., Sanity Checks, NeurIPS 2018.
    Options and errors: see :func:`saliency` and :func:`~saliency.engine.paths.noise`.
    """
    if not (isinstance(power, str) and power in POWERS):
        raise ValueError(f"power={shown(power)} is not a valid power; expected one of {', '.join(POWERS)}.")
    noise = paths.noise(n_samples, stdevs, seed, fold=POWERS[power], times="nothing")
    return saliency(
        model, input, target, saliency_layer, gradient_to_saliency=Attribution(reduction), path=noise, **options
    )
