"""ROAD's imputation: removed pixels are filled in from those around them, so that they carry no information."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from saliency.engine.checks import check_tensor
from saliency.engine.maps import safe_divide

_TOLERANCE = 1e-7  # of the largest pixel
_MAX_STEPS = 200  # 8 to 20 are needed
_DAMPING = 0.9
_CPU_BLOCK = 2**18  # elements solved together: on a CPU they should stay in the cache


class _Level(NamedTuple):
    """The system on one grid of the pyramid: the unknown cells, the row sums, and the factors of a Jacobi step."""

    removed: Tensor
    total: Tensor
    step: Tensor


def linear_imputation(input: Tensor, removed: Tensor) -> Tensor:
    r"""The images, where every removed pixel is the weighted mean of its eight neighbours: the solution x of

    .. math:: x_u \sum_{v \in \Omega(u)} w_{uv} = \sum_{v \in \Omega(u)} w_{uv} x_v

    with w = 1/6 for a neighbour in the row or column, 1/12 for a diagonal one; neighbours outside the image do not
    count. ``input`` is (N, C, H, W), ``removed`` (N, 1, H, W) bool; pixels that are kept stay as they are. Solved for
    all images at once, in float32 at least, until every residual is below 1e-7 of the image's largest value.
    Raises ``ValueError`` for an image that is not finite, or with all of its pixels removed.
    Rong et al., A Consistent and Efficient Evaluation Strategy for Attribution Methods, ICML 2022.

    >>> linear_imputation(torch.tensor([[[[0.0, 9.0, 3.0]]]]), torch.tensor([[[[False, True, False]]]]))
    tensor([[[[0.0000, 1.5000, 3.0000]]]])
    """
    _check(input, removed)
    images = input.detach().to(torch.promote_types(input.dtype, torch.float32))
    size = max(1, _CPU_BLOCK // input[0].numel()) if input.device.type == "cpu" else len(input)
    blocks = zip(images.split(size), removed.split(size), strict=True)
    return torch.cat([_impute(*block) for block in blocks]).to(input.dtype)


def _impute(image: Tensor, removed: Tensor) -> Tensor:
    kept = torch.where(removed, 0, image)
    levels = _pyramid(removed.to(image.dtype))
    # With the pixel itself at weight 1/3 the mean has the same solution, and is a binomial blur.
    solution = _conjugate_gradients(levels, levels[0].removed * _blur(kept), image.abs().amax((1, 2, 3), keepdim=True))
    return torch.where(removed, solution, image)


def _check(input: Tensor, removed: Tensor) -> None:
    check_tensor("input", input)
    check_tensor("removed", removed)
    if input.ndim != 4 or not input.numel() or not input.is_floating_point() or not input.isfinite().all():
        raise ValueError(
            f"input={tuple(input.shape)} of {input.dtype} is not a batch of finite images; "
            "expected a finite floating-point tensor (N, C, H, W)."
        )
    if removed.dtype != torch.bool or removed.shape != (len(input), 1, *input.shape[2:]):
        raise ValueError(
            f"removed={tuple(removed.shape)} of {removed.dtype} does not fit input of shape {tuple(input.shape)}; "
            "expected a bool tensor (N, 1, H, W)."
        )
    if removed.flatten(1).all(1).any():
        raise ValueError("removed=True everywhere leaves nothing to fill in from; expected a pixel kept per image.")


def _blur(x: Tensor) -> Tensor:
    """The binomial blur (1 2 1)' (1 2 1) / 16, zero around the image. No convolution: that may round to TF32."""
    x = F.pad(x, (1, 1, 1, 1))
    x = torch.add(x[:, :, :-2] + x[:, :, 2:], x[:, :, 1:-1], alpha=2)
    return torch.add(x[..., :-2] + x[..., 2:], x[..., 1:-1], alpha=2).mul_(1 / 16)


def _pyramid(removed: Tensor) -> list[_Level]:
    """Coarser and coarser grids. A cell is unknown where all pixels in it are, so a level's holes hold the next's."""
    levels = []
    while True:
        total = _blur(torch.ones_like(removed[:1]))
        levels.append(_Level(removed, total, safe_divide(_DAMPING * removed, total - 1 / 4)))
        if max(removed.shape[2:]) == 1 or not removed.any():
            return levels
        removed = 1 - F.max_pool2d(1 - removed, 2, ceil_mode=True)


def _apply(level: _Level, x: Tensor) -> Tensor:
    """The system's matrix, positive definite: row sums times x, less the blurred x."""
    return level.total * x - _blur(x)


def _cycle(levels: list[_Level], residual: Tensor) -> Tensor:
    """One symmetric V-cycle of multigrid: about the solution, as a preconditioner of conjugate gradients."""
    level, *coarser = levels
    x = level.step * residual
    if coarser:
        rest = level.removed * (residual - _apply(level, x))
        # The sum over a cell is four times its mean: a grid of twice the step has that factor.
        cells = F.avg_pool2d(rest, 2, ceil_mode=True, divisor_override=1)
        height, width = rest.shape[2:]
        correction = F.interpolate(_cycle(coarser, cells), scale_factor=2, mode="nearest")[..., :height, :width]
        x.addcmul_(level.removed, correction)
    return x.addcmul_(level.step, residual - _apply(level, x))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum((1, 2, 3), keepdim=True)


def _conjugate_gradients(levels: list[_Level], right: Tensor, scale: Tensor) -> Tensor:
    """The solution for right-hand sides (N, C, H, W), each stopped on its own, so no image depends on the others."""
    solution, residual = torch.zeros_like(right), right
    direction, old = torch.zeros_like(right), torch.zeros_like(scale)
    for _ in range(_MAX_STEPS):
        done = residual.abs().amax((1, 2, 3), keepdim=True) <= _TOLERANCE * scale
        if done.all():
            return solution
        z = _cycle(levels, residual)
        new = _dot(residual, z)
        direction = z + safe_divide(new, old) * direction
        change = levels[0].removed * _apply(levels[0], direction)
        length = torch.where(done, 0, safe_divide(new, _dot(direction, change)))
        solution = torch.addcmul(solution, length, direction)
        residual = torch.addcmul(residual, length, change, value=-1)
        old = new
    raise RuntimeError(f"The imputation did not converge in {_MAX_STEPS} steps, for {int((~done).sum())} images.")
