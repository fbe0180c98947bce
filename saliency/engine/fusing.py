"""Fusing: combine the maps of several layers into one."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from saliency.engine.checks import describe, is_number, shown
from saliency.engine.maps import resize_saliency, safe_divide

FUSES: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda maps: maps.mean(0),
    "max": lambda maps: maps.amax(0),
    "product": lambda maps: maps.prod(0),
}


def check_fuse(fuse: object, gamma: object) -> None:
    """Raise ``ValueError`` for an invalid way to fuse maps, or an invalid scale."""
    if not (isinstance(fuse, str) and fuse in FUSES):
        raise ValueError(f"fuse={shown(fuse)} is not a way to fuse maps; expected one of {', '.join(FUSES)}.")
    if gamma is not None and not (is_number(gamma) and gamma > 0):
        raise ValueError(f"gamma={shown(gamma)} is not a scale of maps; expected a number > 0 or None.")


def fuse_maps(maps: Sequence[Tensor], fuse: str, gamma: float | None) -> Tensor:
    r"""The mean, maximum or product of maps (N, K, ...), each normalised and resized to the largest.

    .. math:: \hat m = \tanh\Bigl(\gamma \frac{\max(0, m)}{\max_u m_u}\Bigr)

    with the maximum of each image and target; ``gamma=None`` leaves out the hyperbolic tangent.

    >>> fuse_maps([torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[4.0, 1.0]]])], "product", None)
    tensor([[[0.5000, 0.2500]]])
    """
    if not all(isinstance(each, Tensor) for each in maps) or len({each.ndim for each in maps}) > 1:
        raise ValueError(f"maps={', '.join(map(describe, maps))} cannot be fused; expected (N, K, h, w) of each layer.")
    positive = [each.relu() for each in maps]
    normalised = [safe_divide(each, each.amax(tuple(range(2, each.ndim)), keepdim=True)) for each in positive]
    scaled = normalised if gamma is None else [torch.tanh(gamma * each) for each in normalised]
    size = [max(sides) for sides in zip(*(each.shape[:1:-1] for each in maps), strict=True)]
    return FUSES[fuse](torch.stack([resize_saliency(each, each, size, "bilinear") for each in scaled]))
