"""Perturbed versions of every case, a batch of them at a time, and the checks of the maps and baselines behind them."""

from collections.abc import Callable
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module

from saliency.engine.checks import (
    check_count,
    check_maps_type,
    check_model,
    check_seed,
    check_tensor,
    describe,
    shown,
)
from saliency.engine.outputs import main_output
from saliency.engine.state import evaluating
from saliency.engine.targets import Target, Targets, target_error

Activation: TypeAlias = Callable[[Tensor], Tensor]  # the model's output -> probabilities
Baseline: TypeAlias = Tensor | str

NAMED = ("blur", "zero", "mean")  # baselines

# RISE's blur, made for images of 224 pixels.
_BLUR_SIDE = 224
_BLUR_SIGMA = 5
_BLUR_TRUNCATE = 4


def class_softmax(output: Tensor) -> Tensor:
    """Probabilities of classes that exclude each other; ``torch.sigmoid`` gives those of classes that do not.

    >>> class_softmax(torch.zeros(1, 2))
    tensor([[0.5000, 0.5000]])
    """
    return output.softmax(1)


def score_versions(
    model: Module,
    input: Tensor,
    target: Target,
    versions: int,
    picture: Callable[[Tensor, Tensor], Tensor],
    activation: Activation,
    batch_size: int,
) -> Tensor:
    """The target's scores (N, versions), in float32 at least, of pictures that are made batch by batch.

    ``picture(case, version)`` gives (B, C, H, W) for two LongTensors (B,). The model and the random state stay as
    they are. Raises ``ValueError`` for a score that is not finite.
    """
    check_model(model)
    check_count("batch_size", batch_size)
    if not callable(activation):
        raise ValueError(f"activation={shown(activation)} is not callable; expected a function of the model's output.")
    samples, scores = len(input), []
    targets = Targets(target, samples)
    with evaluating(model):
        for rows in torch.arange(samples * versions, device="cpu").split(batch_size):
            case, version = rows // versions, rows % versions
            output = main_output(model(picture(case.to(input.device), version.to(input.device))))
            if not isinstance(output, Tensor):
                raise ValueError(f"model={type(model).__name__} returned {describe(output)}; expected a tensor.")
            output = activation(output.to(torch.promote_types(output.dtype, torch.float32)))
            scores.append(targets.rows(case).scores(output))
            if scores[-1].shape[1] > 1:
                raise target_error(target, f"makes {scores[-1].shape[1]} scores of every case, not one")
        result = torch.cat(scores).view(samples, versions)
    broken = (~result.isfinite()).any(1)
    if broken.any():
        cases = broken.nonzero().flatten().tolist()
        raise ValueError(f"model={type(model).__name__} gave NaN or infinity for cases {cases}; expected a score.")
    return result


def check_maps(input: Tensor, saliency: Tensor) -> Tensor:
    """The maps, detached, where the input is and in float32 at least.

    Raises ``ValueError`` for an input that is not a batch of images, maps that do not fit it, NaN and infinity.
    """
    check_tensor("input", input)
    check_tensor("saliency", saliency)
    check_maps_type("saliency", saliency.float() if saliency.dtype == torch.bool else saliency)  # a mask is a map
    if input.ndim != 4 or not input.is_floating_point() or not input.numel():
        raise ValueError(
            f"input={tuple(input.shape)} of {input.dtype} is not a batch of images; "
            "expected a floating-point tensor (N, C, H, W)."
        )
    if saliency.shape != (len(input), 1, *input.shape[2:]):
        raise ValueError(
            f"saliency={tuple(saliency.shape)} does not fit input of shape {tuple(input.shape)}; "
            "expected maps (N, 1, H, W) of the input's size."
        )
    broken = (~saliency.isfinite()).flatten(1).any(1)
    if broken.any():
        cases = broken.nonzero().flatten().tolist()
        raise ValueError(f"saliency=NaN or infinity in cases {cases} cannot be ranked; expected finite maps.")
    return saliency.detach().to(input.device, torch.promote_types(saliency.dtype, torch.float32))


def saliency_ranks(saliency: Tensor, seed: int = 0) -> Tensor:
    """The rank of every pixel of (N, 1, H, W) maps: 0 for the most salient, equals in an order drawn for ``seed``.

    All maps draw the same order, so that a case does not depend on the others. In reading order a map of zeros would
    remove the background before the middle of the photo, and do better than chance.

    >>> saliency_ranks(torch.tensor([[[[1.0, 3.0, 2.0]]]]))
    tensor([[[[2, 0, 1]]]])
    """
    check_seed(seed)
    check_maps_type("saliency", saliency)
    if saliency.ndim < 2:
        raise ValueError(f"saliency={describe(saliency)} is not a batch of maps; expected (N, 1, H, W).")
    values = saliency.flatten(1)
    drawn = torch.randperm(values.shape[1], generator=torch.Generator().manual_seed(int(seed)), device="cpu")
    drawn = drawn.to(values.device)
    order = drawn[values[:, drawn].argsort(dim=1, descending=True, stable=True)]
    places = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places).view_as(saliency)


def make_baseline(input: Tensor, baseline: Baseline) -> Tensor:
    """The images without what they show: a blur, zeros, the mean of every channel, or a tensor that broadcasts.

    The blur is RISE's: a Gaussian of 5 pixels folded into a square of 11, for a shorter side of 224, and in proportion
    for others; around the image are zeros. Raises ``ValueError`` for anything else.

    >>> make_baseline(torch.tensor([[[[1.0, 3.0]]]]), "mean")
    tensor([[[[2., 2.]]]])
    """
    check_tensor("input", input)
    if input.ndim != 4 or not input.is_floating_point():
        raise ValueError(f"input={describe(input)} of {input.dtype} is not a batch of images; expected (N, C, H, W).")
    input = input.detach()
    if isinstance(baseline, Tensor):
        try:
            return baseline.detach().to(input).expand_as(input)
        except RuntimeError as error:
            given = describe(baseline)
            raise ValueError(f"baseline={given} does not fit; expected one that broadcasts to the input.") from error
    kind = baseline if isinstance(baseline, str) else None  # of an array, == is an array
    if kind == "blur":
        return _blur(input)
    if kind == "mean":
        return input.mean((2, 3), keepdim=True).expand_as(input)
    if kind == "zero":
        return torch.zeros_like(input)
    raise ValueError(f"baseline={shown(baseline)} is unknown; expected a tensor or one of {', '.join(NAMED)}.")


def _blur(input: Tensor) -> Tensor:
    """A Gaussian that is reflected at the borders of its own window is periodic there: its tail is folded in."""
    sigma = _BLUR_SIGMA * min(input.shape[2:]) / _BLUR_SIDE
    radius = max(1, round(sigma))
    width = 2 * radius + 1
    reach = max(1, int(_BLUR_TRUNCATE * sigma + 0.5))
    precision = torch.promote_types(input.dtype, torch.float32)
    offset = torch.arange(-reach, reach + 1, device=input.device)
    tap = (offset + radius) % width
    kernel = torch.zeros(width, dtype=precision, device=input.device)
    kernel.index_add_(0, tap, torch.exp(-(offset.to(precision) ** 2) / (2 * sigma**2)))
    kernel = (kernel / kernel.sum()).to(input.dtype).view(1, 1, 1, width)
    flat = input.flatten(0, 1)[:, None]
    with torch.autocast(input.device.type, enabled=False):
        flat = F.conv2d(F.conv2d(flat, kernel, padding=(0, radius)), kernel.mT, padding=(radius, 0))
    return flat.view_as(input)
