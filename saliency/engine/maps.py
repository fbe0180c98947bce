"""Maps: from a layer's activation and gradient to a saliency map of the asked size."""

import math
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module

Layout: TypeAlias = str | tuple[int, int] | Callable[[Tensor], Tensor] | None
Resize: TypeAlias = bool | Sequence[int]
Reduction: TypeAlias = Callable[[Tensor], Tensor] | None  # attribution -> map; None keeps the attribution

_MAX_EXTRA_TOKENS = 8  # a class token, a distillation token, registers
_CORNERS_MODES = ("bilinear", "bicubic")
_MODES = (*_CORNERS_MODES, "nearest", "nearest-exact", "area")


def safe_divide(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Divide, with 0 where the denominator is 0.

    >>> safe_divide(torch.tensor([1.0, 1.0]), torch.tensor([0.0, 2.0]))
    tensor([0.0000, 0.5000])
    """
    zero = denominator == 0
    return torch.where(zero, 0, numerator / torch.where(zero, 1, denominator))


def gradient_to_saliency(x: Tensor) -> Tensor:
    r"""The largest absolute gradient over the channels, of a tensor that has its ``x.grad``.

    .. math:: s_{n1u} = \max_c |dx_{ncu}|

    Simonyan et al., Deep Inside Convolutional Networks, ICLR workshop 2014.
    """
    return max_channels(gradient_of(x))


def gradient_of(x: Tensor) -> Tensor:
    """The gradient of a tensor; ``ValueError`` where it has none."""
    if x.grad is None:
        raise ValueError(f"x={tuple(x.shape)} has no gradient; a tensor after a backward pass is accepted.")
    return x.grad


def sum_channels(attribution: Tensor) -> Tensor:
    r"""The reduction :math:`s_{n1u} = \sum_c a_{ncu}`: the map adds up to what the attribution adds up to."""
    return attribution.sum(1, keepdim=True)


def max_channels(attribution: Tensor) -> Tensor:
    r"""The reduction :math:`s_{n1u} = \max_c |a_{ncu}|`."""
    return attribution.abs().amax(1, keepdim=True)


def reduce(reduction: Reduction, attribution: Tensor) -> Tensor:
    """The map of an attribution; the attribution itself where there is no reduction."""
    return attribution if reduction is None else reduction(attribution)


def layer_shaped(reduction: Reduction, options: dict[str, Any]) -> dict[str, Any]:
    """Options that keep the layer's own shape where there is no reduction."""
    return {**options, "layout": "layer"} if reduction is None else options


def _same_aspect(grid: Sequence[int], size: Sequence[int]) -> bool:
    """Can this be a grid over an image of this size, up to the rounding of less than one cell?"""
    (h, w), (height, width) = grid, size
    fits = abs(h * width - w * height) < max(height, width)
    return fits and h <= 2 * height and w <= 2 * width


def token_grid(tokens: int, size: Sequence[int]) -> tuple[int, int] | None:
    """Rows and columns of square patches of an image of this size; extra tokens stand in front.

    Patches that fill the image come before those that leave a rest, few extra tokens before many.

    >>> token_grid(197, (224, 224)), token_grid(7, (32, 48))
    ((14, 14), (2, 3))
    """
    height, width = size
    patches = range(1, min(height, width) + 1)
    filling = {(height // patch, width // patch) for patch in patches if height % patch == width % patch == 0}
    for grids in (filling, {(height // patch, width // patch) for patch in patches}):
        fitting = [grid for grid in grids if 0 <= tokens - grid[0] * grid[1] <= _MAX_EXTRA_TOKENS]
        if fitting:
            return max(fitting, key=lambda grid: grid[0] * grid[1])
    return None


def grid_of(x: Tensor, size: Sequence[int]) -> torch.Size | None:
    """The grid of an activation for an image of this size; ``None`` where it has none."""
    if x.ndim == 3 and len(size) == 2:
        grid = token_grid(x.shape[1], size)
        return None if grid is None else torch.Size(grid)
    if x.ndim != len(size) + 2 or x.ndim < 3:
        return None
    grid_first = x.shape[1:-1] if reads_channels_last(x, size) else x.shape[2:]
    return grid_first if all(side <= 2 * of for side, of in zip(grid_first, size, strict=True)) else None


def reads_channels_last(x: Tensor, size: Sequence[int]) -> bool:
    """Is (N, h, w, C) the only reading of an activation that fits an image of this size?"""
    return x.ndim == 4 and not _same_aspect(x.shape[2:], size) and _same_aspect(x.shape[1:3], size)


def _check_unambiguous(x: Tensor, size: Sequence[int], module: Module | None) -> None:
    both = x.ndim == 4 and _same_aspect(x.shape[2:], size) and _same_aspect(x.shape[1:3], size)
    kinds = (torch.nn.Linear, torch.nn.LayerNorm)  # what works on channels that stand last
    if both and x.shape[1] > 1 and module is not None and any(isinstance(part, kinds) for part in module.modules()):
        raise ValueError(
            f"layout=None is ambiguous for an activation of shape {tuple(x.shape)}; "
            "layout='channels_first' or 'channels_last' is accepted."
        )


def to_channels_first(x: Tensor, size: Sequence[int], layout: Layout = None, module: Module | None = None) -> Tensor:
    """View an activation as (N, C, h, w), whatever the network's own layout.

    (N, h, w, C) activations and (N, extra + h * w, C) tokens are told by the image's ``size``. ``layout`` says it
    where that fails: ``'channels_first'``, ``'channels_last'``, the tokens' (h, w), or a function of the activation.
    Raises ``ValueError`` where the shape is ambiguous or no grid.

    >>> to_channels_first(torch.zeros(1, 197, 5), (224, 224)).shape
    torch.Size([1, 5, 14, 14])
    """
    if callable(layout):
        return layout(x)
    if isinstance(layout, str):
        return x.movedim(-1, 1) if layout == "channels_last" else x
    if x.ndim == 2:
        return x[..., None, None]
    if x.ndim == len(size) + 2 and layout is None:
        _check_unambiguous(x, size, module)
        return x.movedim(-1, 1) if reads_channels_last(x, size) else x
    grid = layout or (token_grid(x.shape[1], size) if x.ndim == 3 and len(size) == 2 else None)
    if grid is None or x.ndim != 3 or x.shape[1] < grid[0] * grid[1]:
        raise ValueError(
            f"layout={layout!r} gives an activation of shape {tuple(x.shape)} no grid; layout=(height, width) for "
            "tokens, 'channels_first', 'channels_last', or a function that returns (N, C, h, w) is accepted."
        )
    patches = x[:, x.shape[1] - grid[0] * grid[1] :]
    return patches.reshape(len(x), *grid, -1).movedim(-1, 1)


def check_mode(argument: str, mode: Any) -> None:
    """Raise ``ValueError`` for an unknown way to interpolate."""
    if mode not in _MODES:
        raise ValueError(f"{argument}={mode!r} is unknown; one of {', '.join(_MODES)} is accepted.")


def check_map_options(resize: Any, resize_mode: Any, smooth: Any, layout: Any) -> None:
    """Raise ``ValueError`` for an option that no map can be made with."""
    check_mode("resize_mode", resize_mode)
    pair = isinstance(resize, (tuple, list)) and len(resize) == 2 and all(_positive_int(side) for side in resize)
    if not (isinstance(resize, bool) or pair):
        raise ValueError(f"resize={resize!r} is no size; True, False or (width, height) is accepted.")
    if not is_number(smooth) or smooth < 0:
        raise ValueError(f"smooth={smooth!r} is no fraction of the map's side; a number >= 0 is accepted.")
    grid = isinstance(layout, tuple) and len(layout) == 2 and all(_positive_int(side) for side in layout)
    if not (layout in (None, "channels_first", "channels_last", "layer") or grid or callable(layout)):
        raise ValueError(
            f"layout={layout!r} is unknown; 'channels_first', 'channels_last', 'layer', (height, width), "
            "a function of the activation or None is accepted."
        )


def is_int(value: Any) -> bool:
    """Is this a whole number, of Python or NumPy?"""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Is this a finite real number, of Python or NumPy?"""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _positive_int(value: Any) -> bool:
    return is_int(value) and int(value) > 0


def resize_saliency(tensor: Tensor, saliency: Tensor, size: Resize, mode: str) -> Tensor:
    """Interpolate a map: to ``size`` = (width, height), to the shape of ``tensor`` if True, not at all if False.

    >>> resize_saliency(torch.zeros(1, 3, 8, 6), torch.ones(1, 1, 2, 2), True, 'bilinear').shape
    torch.Size([1, 1, 8, 6])
    """
    if size is False:
        return saliency
    shape = tuple(tensor.shape[2:]) if size is True else tuple(size)[::-1]
    align_corners = False if mode in _CORNERS_MODES else None
    with torch.autocast(saliency.device.type, enabled=False):
        return F.interpolate(saliency, shape, mode=mode, align_corners=align_corners)


def imsmooth(
    tensor: Tensor,
    sigma: float,
    stride: int = 1,
    padding: int = 0,
    padding_mode: str = "constant",
    padding_value: float = 0,
) -> Tensor:
    r"""Filter an (N, C, H, W) tensor by a Gaussian of ``sigma`` pixels, in its own dtype and on its device.

    The kernel :math:`f_i \propto e^{-i^2 / 2\sigma^2}, |i| \le \lceil 4\sigma \rceil` sums to 1 and is applied along
    each axis. ``padding`` adds to the kernel's own half-width; modes: 'constant', 'reflect', 'replicate'.

    >>> imsmooth(torch.ones(1, 1, 3, 3), 0.5, padding_mode='replicate').allclose(torch.ones(1, 1, 3, 3))
    True
    """
    if not 0 <= sigma < math.inf:
        raise ValueError(f"sigma={sigma!r} is no standard deviation in pixels; a number >= 0 is accepted.")
    width = math.ceil(4 * sigma)
    precision = torch.promote_types(tensor.dtype, torch.float32)
    at = torch.arange(-width, width + 1, dtype=precision, device=tensor.device)
    kernel = torch.exp(-(at**2) / (2 * max(sigma, 1e-12) ** 2))
    kernel = (kernel / kernel.sum()).to(tensor.dtype)
    value = padding_value if padding_mode == "constant" else None
    padded = F.pad(tensor, [width + padding] * 4, mode=padding_mode, value=value)
    channels = tensor.shape[1]
    column = kernel.view(1, 1, -1, 1).expand(channels, 1, -1, 1)
    with torch.autocast(tensor.device.type, enabled=False):
        padded = F.conv2d(padded, column, stride=(stride, 1), groups=channels)
        return F.conv2d(padded, column.mT, stride=(1, stride), groups=channels)


def finish_map(saliency: Tensor, input: Tensor, resize: Resize, resize_mode: str, smooth: float) -> Tensor:
    """Resize a map and smooth it by a Gaussian of sigma = ``smooth`` times its longer side.

    What belongs to a table of features, (N, F), stays as it is; of an input with a grid, only (N, C, H, W) is taken.
    """
    if input.ndim == 2 or (resize is False and smooth == 0):
        return saliency
    if saliency.ndim != 4 or input.ndim != 4:
        raise ValueError(
            f"resize={resize!r}, smooth={smooth!r} do not apply to a map of shape {tuple(saliency.shape)}; "
            "an input and a map of two spatial dimensions are accepted."
        )
    saliency = resize_saliency(input, saliency, resize, resize_mode)
    if smooth > 0:
        saliency = imsmooth(saliency, smooth * max(saliency.shape[2:]), padding_mode="replicate")
    return saliency


def join_targets(results: list[Tensor], layer_shaped: bool = False) -> Tensor:
    """K maps become K channels, (N, K, h, w); K attributions stand side by side, (N, K, C, ...)."""
    if len(results) == 1:
        return results[0]
    maps = results[0].shape[1] == 1 and not layer_shaped
    return torch.cat(results, 1) if maps else torch.stack(results, 1)
