"""Methods of differences: the contribution of the change from a baseline to the input, operation by operation."""

from collections.abc import Callable, Sequence
from inspect import signature
from typing import Any, TypeAlias

from torch import Tensor
from torch.nn import Module
from typing_extensions import Unpack

from saliency import rules
from saliency.engine import paths
from saliency.engine.call import Input
from saliency.engine.checks import describe, shown
from saliency.engine.comparing import ComparingContext
from saliency.engine.driver import saliency
from saliency.engine.folds import SHAP, Fold, Steps
from saliency.engine.layers import Layers
from saliency.engine.maps import Attribution, Reduction, sum_channels
from saliency.engine.paths import Baselines
from saliency.engine.signatures import MapOptions, Maps, ScoreOptions, typed
from saliency.engine.targets import Target
from saliency.methods.paths import Distribution, distribution_of

AttributionFunction: TypeAlias = Callable[..., Sequence[Tensor]] | None


class DifferenceOptions(MapOptions, ScoreOptions, total=False):
    """Options of a method that sets the context, the path and the reduction."""


class DeepLiftContext(ComparingContext):
    """Send back multipliers, ratios of differences between the input and a baseline, in place of gradients."""

    def __init__(self) -> None:
        super().__init__(rules.DEEP_LIFT)


@typed
def deep_lift(
    model: Module,
    input: Input,
    target: Target,
    saliency_layer: Layers = "",
    baselines: Baselines = None,
    reduction: Reduction = sum_channels,
    custom_attribution_func: AttributionFunction = None,
    **options: Unpack[DifferenceOptions],
) -> Maps:
    r"""DeepLIFT, rescale rule: the contribution of each entry's difference from its baseline.

    .. math:: a = (x - x') \, m, \quad s_{n1u} = \sum_c a_{ncu}

    with multipliers :math:`m` that propagate like gradients, where operations send back ratios of differences in
    place of derivatives. Sums to the change of the score, at the input and at every layer that all paths cross,
    also through max pooling, gates, normalisation and attention. ``reduction=None`` returns the attribution itself.
    The model runs twice. ``custom_attribution_func`` maps (multipliers,), (activations,), (baselines,) of one image
    to an attribution, all tuples as in Captum. Shrikumar et al., ICML 2017. Options and errors: see
    :func:`saliency`.

    >>> import torch
    >>> deep_lift(torch.nn.ReLU(), torch.tensor([[3.0, -1.0]]), 1, baselines=torch.tensor([[0.0, 1.0]]), reduction=None)
    tensor([[ 0., -1.]])
    """
    line = paths.line(baselines, 1, "riemann_right", fold=_fold(custom_attribution_func, options))
    return saliency(
        model,
        input,
        target,
        saliency_layer,
        context_builder=DeepLiftContext,
        gradient_to_saliency=Attribution(reduction),
        path=line,
        **options,
    )


@typed
def deep_lift_shap(
    model: Module,
    input: Input,
    target: Target,
    saliency_layer: Layers = "",
    baselines: Distribution = None,
    reduction: Reduction = sum_channels,
    custom_attribution_func: AttributionFunction = None,
    **options: Unpack[DifferenceOptions],
) -> Maps:
    r"""DeepLIFT averaged over a distribution of baselines: :math:`a = \frac{1}{M} \sum_t (x - x'_t) \, m_t`.

    ``baselines`` is a tensor (M, ...), one per input, or a function that returns them from the inputs; 0 by
    default. Each image is paired with each baseline, ``internal_batch_size`` pairs at a time. Approximates Shapley
    values; signed, ``reduction=None`` returns the layer's shape. Lundberg and Lee, A Unified Approach to
    Interpreting Model Predictions, NeurIPS 2017. Options and errors: see :func:`saliency` and :func:`deep_lift`.
    """
    each = paths.from_each(distribution_of(baselines, input), fold=_fold(custom_attribution_func, options))
    return saliency(
        model,
        input,
        target,
        saliency_layer,
        context_builder=DeepLiftContext,
        gradient_to_saliency=Attribution(reduction),
        path=each,
        **options,
    )


def _fold(function: AttributionFunction, options: DifferenceOptions) -> Fold:
    """The mean of a custom function's attributions, or of multipliers times differences."""
    if function is None:
        return SHAP
    if not callable(function):
        raise ValueError(f"custom_attribution_func={shown(function)} is not a function; expected a function or None.")
    if options.get("multiply_by_inputs") is False:
        raise ValueError("multiply_by_inputs=False is not possible with custom_attribution_func; expected one of them.")
    count = len(signature(function).parameters)

    def combine(steps: Steps) -> Tensor:
        starts = steps.x if steps.moved is None else steps.x - steps.moved
        given: list[Any] = [(steps.gradient,), (steps.x,), (starts,)]
        made = function(*given[:count])
        found = made[0] if isinstance(made, (tuple, list)) and len(made) == 1 else made
        if not isinstance(found, Tensor) or found.shape != steps.x.shape:
            raise ValueError(
                f"custom_attribution_func={shown(function)} returned {describe(found)}; expected a tuple of one tensor "
                f"of shape {tuple(steps.x.shape)}."
            )
        return (steps.weight * found).sum(0)

    return Fold(combine, attribution=True, moves=True)
