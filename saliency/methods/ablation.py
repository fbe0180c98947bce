"""Ablation: how far the score falls when a part of the input, or of a layer's activation, is replaced."""

import math
from collections.abc import Sequence
from contextlib import suppress
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor
from torch.nn import Module
from typing_extensions import Unpack

from saliency.engine.call import Input, check_inputs
from saliency.engine.checks import check_seed, describe, is_positive_int, shown
from saliency.engine.layers import Layers
from saliency.engine.maps import Reduction, sum_channels
from saliency.engine.paths import Baselines, starts_of
from saliency.engine.signatures import Maps, typed
from saliency.engine.state import rows_at
from saliency.engine.targets import Target
from saliency.methods.perturbing import PER_EVAL, ExplainOptions, Perturbed, at, explain

T = TypeVar("T")
FeatureMask: TypeAlias = "Tensor | Sequence[Tensor] | None"
Sides: TypeAlias = Sequence[int] | int | None


def _columns(numbers: Tensor, x: Tensor) -> Tensor:
    """Numbers (B,) on the device of ``x``, shaped to compare with tensors (B, ...) of as many dimensions."""
    return at(numbers, x).view(-1, *[1] * (x.ndim - 1))


def _rows(x: Tensor, samples: Tensor) -> Tensor:
    """The rows of these samples; a single row is not copied, since it broadcasts."""
    return x if len(x) == 1 else rows_at(x, samples)


def _features(layer_mask: FeatureMask, feature_mask: FeatureMask, p: Perturbed) -> tuple[Tensor, int]:
    """The feature of every entry, (1, ...) or (N, ...), numbered from 0, and the number of features."""
    argument, own = _meant(p, layer_mask=layer_mask, feature_mask=feature_mask)
    if own is None:
        return torch.arange(p.x[0].numel(), device=p.x.device).view(1, *p.x.shape[1:]), p.x[0].numel()
    _check_mask(argument, own, p.x)
    numbers, features = torch.as_tensor(own).expand(len(own), *p.x.shape[1:]).unique(return_inverse=True)
    return features.to(p.x.device), len(numbers)


def _check_mask(argument: str, mask: object, x: Tensor) -> None:
    """Raise ``ValueError`` for a mask that does not give the feature of each entry."""
    shape = mask.shape if isinstance(mask, Tensor) and not mask.is_floating_point() else torch.Size()
    sides = zip(shape[1:], x.shape[1:], strict=len(shape) == x.ndim)
    if len(shape) != x.ndim or shape[0] not in (1, len(x)) or any(side not in (1, of) for side, of in sides):
        raise ValueError(
            f"{argument}={describe(mask)} does not fit the perturbed tensor of shape {tuple(x.shape)}; expected "
            "an integer tensor that broadcasts to it, for one sample or for all."
        )


def _check_at_input(
    input: Input, layers: object, layer_mask: FeatureMask, feature_mask: FeatureMask, baselines: Baselines = None
) -> None:
    """Raise ``ValueError`` for masks and baselines that do not fit the inputs, before the first forward pass."""
    listed = layers if isinstance(layers, (list, tuple)) else [layers]
    if not any(isinstance(layer, str) and not layer for layer in listed):
        return
    inputs = check_inputs(input)
    argument, masks = ("layer_mask", layer_mask) if feature_mask is None else ("feature_mask", feature_mask)
    each = masks if isinstance(masks, (list, tuple)) else [masks] * len(inputs)
    if len(each) != len(inputs):
        raise ValueError(f"{argument}={len(each)} values do not fit; expected {len(inputs)}, one per input.")
    for mask, x in zip(each, inputs, strict=True):
        if mask is not None and x.is_floating_point():
            _check_mask(argument, mask, x)
    starts_of(baselines, inputs)


def _meant(p: Perturbed, **given: T | Sequence[T]) -> tuple[str, T]:
    """The name and value of the option that applies, of one for layers and one for inputs; one alone serves both."""
    at_layer, at_input = given
    first, second = (at_layer, at_input) if p.site.name else (at_input, at_layer)
    argument = second if given[first] is None else first
    return argument, p.own(argument, given[argument])


def _spread(drops: Tensor, features: Tensor, x: Tensor) -> Tensor:
    """Attributions (N, K, ...) from drops (N, F, K): every entry receives the drop of its feature."""
    index = features.flatten(1)[:, None].expand(len(x), drops.shape[2], -1)
    return drops.mT.gather(2, index).view(len(x), drops.shape[2], *x.shape[1:])


@typed
def feature_ablation(
    model: Module,
    input: Input,
    target: Target,
    saliency_layer: Layers = None,
    layer_mask: FeatureMask = None,
    layer_baselines: Baselines = None,
    perturbations_per_eval: int = PER_EVAL,
    reduction: Reduction = sum_channels,
    *,
    feature_mask: FeatureMask = None,
    baselines: Baselines = None,
    **options: Unpack[ExplainOptions],
) -> Maps:
    r"""Feature ablation: how far the score falls when a feature is replaced by its baseline.

    .. math:: a_i = f(x) - f(x_{i \leftarrow x'_i}), \quad s_{n1u} = \sum_c a_{ncu}

    A feature is one entry of the layer's activation (of the input at ``saliency_layer=''``), or all entries with
    the same number in ``layer_mask`` (``feature_mask`` at the input), which receive the same attribution.
    ``layer_baselines`` (``baselines`` at the input) are 0 by default, or a number or tensors. With several inputs,
    a tuple holds one value per input, and features are not shared between inputs. At a layer, the front of the
    network runs once per sample. Signed; ``reduction=None`` returns the layer's shape. Zeiler and Fergus, ECCV
    2014. Options: see :func:`explain`.

    >>> feature_ablation(torch.nn.Flatten(), torch.tensor([[[[3.0, 4.0]]]]), 1, "")
    tensor([[[[0., 4.]]]])
    """

    def attribute(p: Perturbed) -> Tensor:
        features, count = _features(layer_mask, feature_mask, p)
        replaced = _meant(p, layer_baselines=layer_baselines, baselines=baselines)[1]
        (start,) = starts_of(replaced, [p.x])

        def make(samples: Tensor, numbers: Tensor) -> Tensor:
            of, a, x = (_rows(tensor, samples) for tensor in (features, start, p.x))
            return torch.where(of == _columns(numbers, p.x), a, x)

        return _spread(p.drops(count, make), features, p.x)

    _check_at_input(
        input, saliency_layer, layer_mask, feature_mask, layer_baselines if baselines is None else baselines
    )
    return explain(model, input, target, saliency_layer, attribute, reduction, perturbations_per_eval, **options)


@typed
def feature_permutation(
    model: Module,
    input: Input,
    target: Target,
    saliency_layer: Layers = None,
    layer_mask: FeatureMask = None,
    seed: int = 0,
    perturbations_per_eval: int = PER_EVAL,
    reduction: Reduction = sum_channels,
    *,
    feature_mask: FeatureMask = None,
    **options: Unpack[ExplainOptions],
) -> Maps:
    r"""Feature permutation: how far the score falls when a feature is replaced by that of another sample of the batch.

    .. math:: a_{ni} = f(x_n) - f(x_{n, i \leftarrow x_{\pi_i(n), i}})

    Each feature has its own random permutation :math:`\pi_i` of the batch, never the identity; features are defined
    as in :func:`feature_ablation`. Raises ``ValueError`` for a batch of one. Breiman, Random Forests, Machine
    Learning 2001. Options: see :func:`explain`.
    """
    check_seed(seed)
    if len(check_inputs(input)[0]) < 2:
        raise ValueError("input=a batch of 1 sample is too small to permute; expected a batch of two or more.")

    def attribute(p: Perturbed) -> Tensor:
        features, count = _features(layer_mask, feature_mask, p)
        generator = torch.Generator().manual_seed(int(seed))
        others = torch.rand(count, len(p.x), generator=generator, device="cpu").argsort(1)
        same = (others == torch.arange(len(p.x), device="cpu")).all(1, keepdim=True)
        others = torch.where(same, others.roll(1, 1), others)

        def make(samples: Tensor, numbers: Tensor) -> Tensor:
            other, of = at(others[numbers, samples], p.x), _rows(features, samples)
            return torch.where(of == _columns(numbers, p.x), p.x[other], _rows(p.x, samples))

        return _spread(p.drops(count, make), features, p.x)

    _check_at_input(input, saliency_layer, layer_mask, feature_mask)
    return explain(model, input, target, saliency_layer, attribute, reduction, perturbations_per_eval, **options)


@typed
def occlusion(
    model: Module,
    input: Input,
    target: Target,
    saliency_layer: Layers = "",
    sliding_window_shapes: Sides = None,
    strides: Sides = None,
    baselines: Baselines = None,
    perturbations_per_eval: int = PER_EVAL,
    reduction: Reduction = sum_channels,
    **options: Unpack[ExplainOptions],
) -> Maps:
    r"""Occlusion: how far the score falls when a window is hidden, averaged over the windows that cover a position.

    .. math:: a_i = \frac{\sum_w m_{wi} (f(x) - f(x \odot (1 - m_w) + x' \odot m_w))}{\sum_w m_{wi}}

    ``sliding_window_shapes`` and ``strides`` hold one value per dimension except the batch. By default, windows
    span all channels and an eighth of each side of the grid, and the stride is half of that. Windows are cropped at
    the border.
    Signed; ``reduction=None`` returns the input's shape. Zeiler and Fergus, ECCV 2014. Options: see
    :func:`explain`.
    """

    def attribute(p: Perturbed) -> Tensor:
        entries = _entries(p, named=sliding_window_shapes is not None or strides is not None)
        sides = tuple(p.x.shape[1:] if entries is None else entries.shape)
        window, stride = _windows(sliding_window_shapes, strides, sides)
        (start,) = starts_of(p.own("baselines", baselines), [p.x])
        covers = [_covers(*each, p.x) for each in zip(sides, window, stride, strict=True)]
        places = torch.cartesian_prod(*[torch.arange(len(cover), device="cpu") for cover in covers])
        places = places.view(-1, len(covers))

        def make(samples: Tensor, numbers: Tensor) -> Tensor:
            own, hidden = at(samples, p.x), p.x.new_ones(len(numbers), *[1] * len(covers))
            for axis, (cover, place) in enumerate(zip(covers, places[numbers].unbind(1), strict=True)):
                shape = [len(numbers), *[1] * axis, -1, *[1] * (len(covers) - axis - 1)]
                hidden = hidden * cover[at(place, p.x)].view(shape)
            return torch.where(_put(hidden.expand(-1, *sides), entries, p.x) > 0, start[own], p.x[own])

        drops = p.drops(len(places), make).mT.unflatten(2, [len(cover) for cover in covers])
        counts = torch.ones_like(drops[:1, :1])
        for cover in covers:  # each pass contracts the first axis and appends its positions at the end
            drops, counts = (torch.tensordot(x, cover.to(x.dtype), ([2], [0])) for x in (drops, counts))
        attribution: Tensor = _put((drops / counts).flatten(0, 1), entries, p.x).view(*drops.shape[:2], *p.x.shape[1:])
        return attribution

    return explain(model, input, target, saliency_layer, attribute, reduction, perturbations_per_eval, **options)


def _entries(p: Perturbed, named: bool) -> Tensor | None:
    """The entries of a layer's activation, arranged as its grid, over which windows slide by default.

    None where window shapes are given, and where no grid is known: windows then follow the tensor's own dimensions.
    """
    if not named and p.site.name and p.x.ndim > 2:
        with suppress(ValueError):
            return p.entries
    return None


def _put(values: Tensor, entries: Tensor | None, x: Tensor) -> Tensor:
    """Values (B, ...) at their entries, in tensors of the shape of ``x`` that are 0 elsewhere."""
    if entries is None:
        return values
    whole = values.new_zeros(len(values), x[0].numel())
    return whole.index_copy_(1, entries.flatten(), values.flatten(1)).view(-1, *x.shape[1:])


def _windows(windows: Sides, strides: Sides, sides: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """The size and the stride of the windows along each axis."""
    own = [sides[0], *(math.ceil(side / 8) for side in sides[1:])] if len(sides) > 1 else [math.ceil(sides[0] / 8)]
    window = _of_each(windows, own, len(sides))
    half = [max(1, side // 2) for side in window] if all(map(is_positive_int, window)) else []
    step = _of_each(strides, half, len(sides))
    for argument, asked, found in (("sliding_window_shapes", windows, window), ("strides", strides, step)):
        if len(found) != len(sides) or not all(map(is_positive_int, found)):
            raise ValueError(
                f"{argument}={shown(asked)} does not fit {sides}; expected an int >= 1 for each dimension."
            )
    if any(by > side for by, side in zip(step, window, strict=True)):
        raise ValueError(f"strides={step} leaves gaps between windows; expected at most the window's size {window}.")
    return [min(pair) for pair in zip(window, sides, strict=True)], step


def _of_each(asked: Sides, default: list[int], dimensions: int) -> list[int]:
    """The requested value for each dimension, or the default."""
    if asked is None:
        return default
    return [*asked] if isinstance(asked, Sequence) else [asked] * dimensions


def _covers(side: int, window: int, stride: int, x: Tensor) -> Tensor:
    """Which positions along one axis each window covers, (windows, side)."""
    first = torch.arange(1 + math.ceil((side - window) / stride), device=x.device)[:, None] * stride
    place = torch.arange(side, device=x.device)
    covered: Tensor = (place >= first) & (place < first + window)
    return covered.to(x.dtype)
