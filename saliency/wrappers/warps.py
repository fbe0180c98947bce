"""Augmentation: the maps of changed images, each changed back."""

from collections.abc import Sequence
from functools import partial, wraps
from math import cos, radians, sin
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map

from saliency.engine.checks import describe, is_number, shown
from saliency.engine.maps import safe_divide
from saliency.wrappers.wrapping import Method, check_method, refuse_probes, wide


class Warp(NamedTuple):
    """A change of an image that can be undone.

    In this order: it is mirrored left to right by ``flip``, turned counterclockwise by ``angle`` degrees, enlarged by
    ``scale``, and moved by ``shift`` = (right, down) as a fraction of its sides; its values are multiplied by ``gain``.
    """

    angle: float = 0.0
    scale: float = 1.0
    shift: tuple[float, float] = (0.0, 0.0)
    flip: bool = False
    gain: float = 1.0

    def matrix(self, width: int, height: int) -> Tensor:
        """Where in an image the points of the changed one are, (3, 3), in coordinates from -1 to 1."""
        turn, sides = radians(self.angle), torch.tensor([width, height, 1.0], dtype=torch.float64)
        cosine, sine = cos(turn) * self.scale, sin(turn) * self.scale
        forward = torch.tensor([[cosine, sine, 0.0], [-sine, cosine, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
        forward = forward * sides / sides[:, None]  # a turn is one in pixels
        if self.flip:
            forward[:, 0] *= -1
        forward[:2, 2] = 2 * torch.tensor(self.shift, dtype=torch.float64)
        back: Tensor = torch.linalg.inv(forward)
        return back


FLIPS = (Warp(), Warp(flip=True))


def augmented(method: Method, warps: Sequence[Warp] = FLIPS) -> Method:
    r"""Test-time augmentation: the maps of changed images, each changed back, averaged.

    .. math:: s(x) = \frac{1}{n} \sum_i w_i^{-1}(\mathrm{method}(w_i(x)))

    ``warps`` are the changes :math:`w_i`: the image and its mirror image, if they are left out. A map counts where the
    changed image shows a point; what lies outside of an image continues its border. For images (N, C, H, W) and maps
    of any resolution. Small rotations, ``[Warp(angle) for angle in (-10, -5, 0, 5, 10)]``, average out what depends on
    the grid of patches of a transformer.

    >>> augmented(lambda model, x, target: x)(None, torch.arange(4.0).view(1, 1, 2, 2), 0)
    tensor([[[[0., 1.],
              [2., 3.]]]])
    """
    check_method(method, "augmented")
    listed = list(warps) if isinstance(warps, Sequence) else []
    if not listed or not all(isinstance(warp, Warp) for warp in listed):
        raise ValueError(f"warps={shown(warps)} is not a list of changes; expected Warp(...), one at least.")
    for warp in listed:
        if not all(map(is_number, (warp.angle, warp.scale, *warp.shift, warp.gain))) or warp.scale <= 0:
            raise ValueError(f"warps={warp!r} cannot be undone; expected finite numbers and scale > 0.")

    @wraps(method)
    def averaged(model: Any, input: Any, *args: Any, **options: Any) -> Any:
        refuse_probes(options)
        if not isinstance(input, Tensor) or input.ndim != 4:
            raise ValueError(f"input={describe(input)} cannot be turned or mirrored; expected images (N, C, H, W).")
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
    """The maps (N, K, h, w) of a changed image where they are in the image, and behind them where that is seen."""
    if saliency.ndim != 4:
        raise ValueError(f"method made {describe(saliency)}, which cannot be changed back; expected maps (N, K, h, w).")
    seen = torch.cat([wide(saliency), torch.ones_like(wide(saliency[:, :1]))], 1)
    return _warped(seen, torch.linalg.inv(matrix), "zeros")
