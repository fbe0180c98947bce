"""Faithfulness: does the score follow the map? Pixels are hidden in its order, and the network is asked again."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import Module

from saliency.engine.checks import check_count, check_maps_type, is_number, shown
from saliency.engine.maps import safe_divide
from saliency.engine.targets import Target
from saliency.evaluation.metrics.imputation import linear_imputation
from saliency.evaluation.metrics.perturbed import (
    Activation,
    Baseline,
    check_maps,
    class_softmax,
    make_baseline,
    saliency_ranks,
    score_versions,
)

PERCENTAGES = (20, 40, 60, 80)


def insertion(
    model: Module,
    input: Tensor,
    target: Target,
    saliency: Tensor,
    steps: int = 32,
    baseline: Baseline = "blur",
    activation: Activation = class_softmax,
    batch_size: int = 32,
    seed: int = 0,
) -> Tensor:
    r"""The target's probability (N, steps + 1) while pixels, the most salient first, are put into a blurred image.

    .. math:: p_{nt} = f_{y_n}(\tilde x_n + m_{nt} (x_n - \tilde x_n)), \quad m_{ntu} = [r_{nu} < k_t]

    with r a pixel's rank in the map, equals in an order drawn for ``seed``, and k the rounded t H W / T. ``input`` is
    (N, C, H, W), ``saliency`` (N, 1, H, W), ``target`` an index or one for each case. ``baseline``: ``'blur'``
    as in RISE (11 pixels of 224), ``'zero'``, ``'mean'`` of each channel, or a tensor. The score is
    :func:`curve_area`; higher is better. ``batch_size`` images are a forward pass. Raises ``ValueError`` for maps
    that are not finite or do not fit. Petsiuk et al., RISE, BMVC 2018.

    >>> model = torch.nn.Flatten()
    >>> x = torch.tensor([[[[0.0, 2.0]]]])
    >>> insertion(model, x, 1, x, steps=2, baseline="zero", activation=lambda output: output)
    tensor([[0., 2., 2.]])
    """
    return _curve(model, input, target, saliency, True, steps, baseline, activation, batch_size, seed)


def deletion(
    model: Module,
    input: Tensor,
    target: Target,
    saliency: Tensor,
    steps: int = 32,
    baseline: Baseline = "zero",
    activation: Activation = class_softmax,
    batch_size: int = 32,
    seed: int = 0,
) -> Tensor:
    r"""The target's probability (N, steps + 1) while pixels, the most salient first, are taken from the image.

    .. math:: p_{nt} = f_{y_n}(x_n + m_{nt} (\tilde x_n - x_n)), \quad m_{ntu} = [r_{nu} < k_t]

    Arguments and errors: see :func:`insertion`. Removed pixels become the ``baseline``, 0 by default: the
    mean colour of a network with normalised input. The score is :func:`curve_area`; lower is better.
    Petsiuk et al., RISE, BMVC 2018.

    >>> x = torch.tensor([[[[1.0, 2.0]]]])
    >>> deletion(torch.nn.Flatten(), x, 1, x, steps=2, activation=lambda output: output)
    tensor([[2., 0., 0.]])
    """
    return _curve(model, input, target, saliency, False, steps, baseline, activation, batch_size, seed)


def _curve(
    model: Module,
    input: Tensor,
    target: Target,
    saliency: Tensor,
    insert: bool,
    steps: int,
    baseline: Baseline,
    activation: Activation,
    batch_size: int,
    seed: int,
) -> Tensor:
    rank = saliency_ranks(check_maps(input, saliency), seed)
    pixels = rank[0].numel()
    check_count("steps", steps)
    counts = ((torch.arange(steps + 1, device="cpu") * pixels + steps // 2) // steps).to(input.device).view(-1, 1, 1, 1)
    hidden = make_baseline(input, baseline)
    first, last = (hidden, input) if insert else (input, hidden)

    def picture(case: Tensor, version: Tensor) -> Tensor:
        return torch.where(rank[case] < counts[version], last[case], first[case])

    return score_versions(model, input, target, steps + 1, picture, activation, batch_size)


def curve_area(curve: Tensor) -> Tensor:
    """The area (N,) under curves (N, T) by the trapezoidal rule, over the share of pixels from 0 to 1.

    >>> curve_area(torch.tensor([[0.0, 1.0, 1.0]]))
    tensor([0.7500])
    """
    check_maps_type("curve", curve)
    if not curve.isfinite().all():
        raise ValueError("curve=NaN or infinity has no area; expected finite numbers.")
    if curve.ndim != 2 or curve.shape[1] < 2:
        raise ValueError(f"curve={tuple(curve.shape)} has no area under it; expected a tensor (N, T) with T >= 2.")
    return torch.trapezoid(curve, dim=1) / (curve.shape[1] - 1)


def road(
    model: Module,
    input: Tensor,
    target: Target,
    saliency: Tensor,
    percentages: Sequence[float] = PERCENTAGES,
    noise: float = 0.01,
    seed: int = 0,
    activation: Activation = class_softmax,
    batch_size: int = 32,
) -> Tensor:
    r"""ROAD (N,): the probability without the least salient pixels less that without the most salient.

    .. math:: s_n = \frac{1}{|P|} \sum_{p \in P} \tfrac{1}{2} (\mathrm{LeRF}_{np} - \mathrm{MoRF}_{np}) \in [-1/2, 1/2]

    the combined score of both curves of :func:`road_curves`; see there for arguments and errors; higher is better.

    >>> x = torch.tensor([[[[1.0, 0.0, 0.0, 0.0]]]])
    >>> road(torch.nn.Flatten(), x, 0, x, [50], noise=0, activation=lambda output: output)
    tensor([0.5000])
    """
    curves = road_curves(model, input, target, saliency, percentages, noise, seed, activation, batch_size)
    most_relevant_first, least_relevant_first = curves
    return (least_relevant_first - most_relevant_first).mean(1) / 2


def road_curves(
    model: Module,
    input: Tensor,
    target: Target,
    saliency: Tensor,
    percentages: Sequence[float] = PERCENTAGES,
    noise: float = 0.01,
    seed: int = 0,
    activation: Activation = class_softmax,
    batch_size: int = 32,
) -> tuple[Tensor, Tensor]:
    r"""The target's probabilities, (N, P) and (N, P), after imputing the most and the least salient pixels.

    ``percentages`` of the pixels are removed, filled in by :func:`linear_imputation` and given Gaussian noise of
    standard deviation ``noise``, in the input's units; it and the order of equal pixels are drawn once for ``seed``,
    so that a case's score does not depend on the others. Arguments as for :func:`insertion`. Raises ``ValueError`` for
    a percentage outside (0, 100).
    Rong et al., A Consistent and Efficient Evaluation Strategy for Attribution Methods, ICML 2022.
    """
    rank = saliency_ranks(check_maps(input, saliency), seed)
    _check_road(percentages, noise)
    pixels = rank[0].numel()
    counts = [min(round(pixels * share / 100), pixels - 1) for share in percentages]
    bounds = torch.tensor([*counts, *(pixels - count for count in counts)], device=input.device).view(-1, 1, 1, 1)
    generator = torch.Generator().manual_seed(int(seed))
    field = noise * torch.randn(input[:1].shape, generator=generator, device="cpu", dtype=torch.float32).to(input)

    def picture(case: Tensor, version: Tensor) -> Tensor:
        least = (version >= len(counts)).view(-1, 1, 1, 1)
        removed = (rank[case] < bounds[version]) ^ least
        return linear_imputation(input[case], removed) + field * removed

    scores = score_versions(model, input, target, 2 * len(counts), picture, activation, batch_size)
    return scores[:, : len(counts)], scores[:, len(counts) :]


def _check_road(percentages: object, noise: object) -> None:
    known = isinstance(percentages, Sequence) and all(is_number(share) and 0 < share < 100 for share in percentages)
    if not known or not percentages:
        raise ValueError(f"percentages={shown(percentages)} are none of pixels; expected numbers between 0 and 100.")
    if not is_number(noise) or noise < 0:
        raise ValueError(f"noise={shown(noise)} is not a standard deviation; expected a number >= 0.")


def average_drop(
    model: Module,
    input: Tensor,
    target: Target,
    saliency: Tensor,
    activation: Activation = class_softmax,
    batch_size: int = 32,
) -> Tensor:
    r"""The share (N,) of the target's probability that is lost when only what the map highlights is seen.

    .. math:: d_n = \frac{\max(0, f_{y_n}(x_n) - f_{y_n}(\hat s_n x_n))}{f_{y_n}(x_n)} \in [0, 1], \quad
              \hat s_n = \frac{s_n - \min s_n}{\max s_n - \min s_n}

    A constant map highlights nothing. Lower is better; the paper gives the mean over cases in percent.
    Arguments and errors: see :func:`insertion`. Chattopadhay et al., Grad-CAM++, WACV 2018.

    >>> x = torch.tensor([[[[1.0, 1.0]]]])
    >>> average_drop(torch.nn.Flatten(), x, 1, torch.tensor([[[[4.0, 1.0]]]]), activation=lambda output: output)
    tensor([1.])
    """
    before, after = _seen_through(model, input, target, saliency, activation, batch_size)
    return safe_divide((before - after).relu(), before)


def increase_in_confidence(
    model: Module,
    input: Tensor,
    target: Target,
    saliency: Tensor,
    activation: Activation = class_softmax,
    batch_size: int = 32,
) -> Tensor:
    r"""Is the target more probable (N,), bool, when only what the map highlights is seen?

    .. math:: i_n = [f_{y_n}(x_n) < f_{y_n}(\hat s_n x_n)]

    with the scaled map of :func:`average_drop`. Higher is better. Arguments and errors: see :func:`insertion`.
    Chattopadhay et al., Grad-CAM++, WACV 2018.

    >>> x = torch.tensor([[[[1.0, 1.0]]]])
    >>> increase_in_confidence(torch.nn.Flatten(), x, 1, torch.tensor([[[[4.0, 1.0]]]]))
    tensor([False])
    """
    before, after = _seen_through(model, input, target, saliency, activation, batch_size)
    return before < after


def _seen_through(
    model: Module, input: Tensor, target: Target, saliency: Tensor, activation: Activation, batch_size: int
) -> tuple[Tensor, Tensor]:
    """The target's probability of every image, and of the image times its map, scaled to [0, 1]."""
    saliency = check_maps(input, saliency)
    lowest, highest = saliency.amin((2, 3), keepdim=True), saliency.amax((2, 3), keepdim=True)
    scaled = safe_divide(saliency - lowest, highest - lowest).to(input.dtype)

    def picture(case: Tensor, version: Tensor) -> Tensor:
        return torch.where((version == 0).view(-1, 1, 1, 1), input[case], input[case] * scaled[case])

    before, after = score_versions(model, input, target, 2, picture, activation, batch_size).unbind(1)
    return before, after
