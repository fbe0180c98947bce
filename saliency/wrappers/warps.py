"""Augmentation: the maps of transformed images, each transformed back."""

from collections.abc import Sequence
from functools import partial, wraps
from math import cos, radians, sin
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module
from torch.utils._pytree import tree_map

from saliency.engine.call import Input
from saliency.engine.checks import describe, is_number, shown
from saliency.engine.maps import safe_divide
from saliency.engine.signatures import Maps
from saliency.wrappers.wrapping import Method, check_method, refuse_probes, wide


class Warp(NamedTuple):
    """An invertible transformation of an image.

    In this order: flip left to right if ``flip``, rotate counterclockwise by ``angle`` degrees, enlarge by
    ``scale``, translate by ``shift`` = (right, down) as a fraction of the sides; then multiply the values by
    ``gain``.
    """

    angle: float = 0.0
    scale: float = 1.0
    shift: tuple[float, float] = (0.0, 0.0)
    flip: bool = False
    gain: float = 1.0

    def matrix(self, width: int, height: int) -> Tensor:
        """The matrix (3, 3) from points of the transformed image to points of the image, both in [-1, 1]."""
        exact = partial(torch.tensor, dtype=torch.float64, device="cpu")
        turn, sides = radians(self.angle), exact([width, height, 1.0])
        cosine, sine = cos(turn) * self.scale, sin(turn) * self.scale
        forward = exact([[cosine, sine, 0.0], [-sine, cosine, 0.0], [0.0, 0.0, 1.0]])
        forward = forward * sides / sides[:, None]  # a rotation preserves lengths in pixels
        if self.flip:
            forward[:, 0] *= -1
        forward[:2, 2] = 2 * exact(self.shift)
        back: Tensor = torch.linalg.inv(forward)
        return back


FLIPS = (Warp(), Warp(flip=True))


def augmented(method: Method, warps: Sequence[Warp] = FLIPS) -> Method:
    r"""Test-time augmentation: the maps of transformed images, each transformed back, averaged.

    .. math:: s(x) = \frac{1}{n} \sum_i w_i^{-1}(\mathrm{method}(w_i(x)))

    with the transformations :math:`w_i` in ``warps``; by default, the image and its mirror image. Each map counts
    only where its transformed image shows a point; outside, an image continues its border. For images (N, C, H, W)
    and maps of any resolution. Small rotations, ``[Warp(angle) for angle in (-10, -5, 0, 5, 10)]``, average out
    effects of a transformer's grid of patches.

    >>> augmented(lambda model, x, target: x)(None, torch.arange(4.0).view(1, 1, 2, 2), 0)
    tensor([[[[0., 1.],
              [2., 3.]]]])
    """
    check_method(method, "augmented")
    listed = list(warps) if isinstance(warps, Sequence) else []
    if not listed or not all(isinstance(warp, Warp) for warp in listed):
        raise ValueError(f"warps={shown(warps)} is not a list of warps; expected at least one Warp(...).")
    for warp in listed:
        if not all(map(is_number, (warp.angle, warp.scale, *warp.shift, warp.gain))) or warp.scale <= 0:
            raise ValueError(f"warps={warp!r} is not invertible; expected finite numbers and scale > 0.")

    @wraps(method)
    def averaged(model: Module, input: Input, *args: object, **options: object) -> Maps:
        refuse_probes(options)
        if not isinstance(input, Tensor) or input.ndim != 4:
            raise ValueError(f"input={describe(input)} cannot be transformed; expected images (N, C, H, W).")
        total, found = None, None
        for warp in listed:
            matrix = warp.matrix(input.shape[3], input.shape[2])
            found = method(model, _warped(input.detach(), matrix, "border") * warp.gain, *args, **options)
            back = tree_map(partial(_changed_back, matrix=matrix), found)
            total = back if total is None else tree_map(torch.add, total, back)
        return tree_map(lambda sums, like: safe_divide(sums[:, :-1], sums[:, -1:]).to(like.dtype), total, found)

    return cast(Method, averaged)


def _warped(x: Tensor, matrix: Tensor, outside: str) -> Tensor:
    grid = F.affine_grid(matrix[None, :2].to(x).expand(len(x), -1, -1), list(x.shape), align_corners=False)
    warped: Tensor = F.grid_sample(x, grid, padding_mode=outside, align_corners=False)
    return warped


def _changed_back(saliency: Tensor, matrix: Tensor) -> Tensor:
    """The maps (N, K, h, w) transformed back, followed by a channel that says where they are defined."""
    if saliency.ndim != 4:
        raise ValueError(f"method returned {describe(saliency)}, which is not a map; expected (N, K, h, w).")
    seen = torch.cat([wide(saliency), torch.ones_like(wide(saliency[:, :1]))], 1)
    return _warped(seen, torch.linalg.inv(matrix), "zeros")
