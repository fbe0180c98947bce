"""Maps: from a layer's activation and gradient to a saliency map of the requested size."""

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from saliency.engine.checks import (
    check_count,
    check_maps_type,
    check_tensor,
    describe,
    is_int,
    is_number,
    is_positive_int,
    name_of,
    shown,
)
from saliency.engine.state import full_precision

Resize: TypeAlias = bool | int | Sequence[int]  # innermost axis first: (width, height), (width, height, depth)
Reduction: TypeAlias = Callable[[Tensor], Tensor] | None  # attribution -> map; None keeps the attribution
_LINEAR = {3: "linear", 4: "bilinear", 5: "trilinear"}  # by a map's dimensions: all are linear along each axis
_MODES = ("bilinear", "bicubic", "nearest", "nearest-exact", "area")
_PADDING_MODES = ("constant", "reflect", "replicate")
MOST_SIGMA = 100  # pixels, or twice the side of a larger map


def safe_divide(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Divide, returning 0 where the denominator is 0.

    >>> safe_divide(torch.tensor([1.0, 1.0]), torch.tensor([0.0, 2.0]))
    tensor([0.0000, 0.5000])
    """
    zero = denominator == 0
    return torch.where(zero, 0, numerator / torch.where(zero, 1, denominator))


def gradient_to_saliency(x: Tensor) -> Tensor:
    r"""The largest absolute gradient over the channels, for a tensor with its ``x.grad``.

    .. math:: s_{n1u} = \max_c |dx_{ncu}|

    Simonyan et al., Deep Inside Convolutional Networks, ICLR workshop 2014.
    """
    return max_channels(gradient_of(x))


def gradient_of(x: Tensor) -> Tensor:
    """The gradient of a tensor; ``ValueError`` if it has none."""
    check_tensor("x", x)
    if x.grad is None:
        raise ValueError(
            f"x={tuple(x.shape)} has no gradient; expected a tensor after a backward pass, "
            "which get_backward_gradient=None leaves out."
        )
    return x.grad


def sum_channels(attribution: Tensor) -> Tensor:
    r"""The reduction :math:`s_{n1u} = \sum_c a_{ncu}`: the map has the same sum as the attribution."""
    _check_channels(attribution)
    return attribution.sum(1, keepdim=True)


def positive_sum(attribution: Tensor) -> Tensor:
    r"""The reduction of a class activation map, :math:`s_{n1u} = \max\{0, \sum_c a_{ncu}\}`."""
    return sum_channels(attribution).relu()


def max_channels(attribution: Tensor) -> Tensor:
    r"""The reduction :math:`s_{n1u} = \max_c |a_{ncu}|`."""
    _check_channels(attribution)
    return attribution.abs().amax(1, keepdim=True)


def _check_channels(attribution: object) -> None:
    check_maps_type("attribution", attribution)
    if isinstance(attribution, Tensor) and (attribution.ndim < 2 or not attribution.shape[1]):
        raise ValueError(f"attribution={describe(attribution)} has no channels; expected (N, C, ...).")


class Attribution:
    r"""The attribution :math:`a_{ncu} = x_{ncu} \, dx_{ncu}`, reduced to a map, or unreduced with ``None``.

    With ``of``, the attribution is the ``'gradient'`` or the ``'activation'`` alone.

    >>> x = torch.tensor([[2.0, 3.0]])
    >>> x.grad = torch.tensor([[1.0, -1.0]])
    >>> Attribution(sum_channels)(x), Attribution(None)(x)
    (tensor([[-1.]]), tensor([[ 2., -3.]]))
    """

    def __init__(self, reduction: Reduction = sum_channels, of: str = "gradient_x_activation") -> None:
        if not (reduction is None or callable(reduction)):
            raise ValueError(f"reduction={shown(reduction)} is not a reduction; expected a function or None.")
        self.reduction, self.of = reduction, of

    def __call__(self, x: Tensor) -> Tensor:
        attribution = x if self.of == "activation" else gradient_of(x)
        if self.of == "gradient_x_activation":
            attribution = x * attribution
        reduced = attribution if self.reduction is None else self.reduction(attribution)
        if not isinstance(reduced, Tensor):
            raise ValueError(f"reduction={self.reduction!r} returned {describe(reduced)}; expected a tensor.")
        check_axes("reduction", self.reduction, attribution, reduced)
        return reduced

    def unscaled(self) -> "Attribution":
        """The reduction of a method that does not multiply by the inputs."""
        return Attribution(self.reduction, "gradient" if self.of == "gradient_x_activation" else self.of)


def check_axes(argument: str, function: object, x: Tensor, made: Tensor) -> None:
    """Raise ``ValueError`` for a map without an axis for each of the tensor that a function made it of.

    >>> check_axes("reduction", torch.sum, torch.zeros(1, 8, 4, 4), torch.zeros(1, 4, 4))
    Traceback (most recent call last):
    ValueError: reduction=sum made (1, 4, 4) of (1, 8, 4, 4); expected (N, 1, ...), as x.sum(1, keepdim=True) is.
    """
    if x.ndim > 2 and made.ndim < x.ndim:
        raise ValueError(
            f"{argument}={name_of(function)} made {tuple(made.shape)} of {tuple(x.shape)}; expected (N, 1, ...), as "
            "x.sum(1, keepdim=True) is."
        )


def check_mode(argument: str, mode: object) -> None:
    """Raise ``ValueError`` for an unknown interpolation mode."""
    if not isinstance(mode, str) or mode not in (*_MODES, *_LINEAR.values()):
        raise ValueError(f"{argument}={shown(mode)} is unknown; expected one of {', '.join(_MODES)}.")


def check_map_options(
    resize: object, resize_mode: object, smooth: object, layout: object, image: Tensor | None = None
) -> None:
    """Raise ``ValueError`` for options with which no map of this image can be made; without one, of an image with two
    axes.
    """
    check_mode("resize_mode", resize_mode)
    ndim = 4 if image is None else image.ndim
    axes = (1, 2, 3) if ndim < 3 else (2, 3) if ndim == 5 else (ndim - 2,)  # 5: a volume, or a clip of frames
    if not (isinstance(resize, bool) or _is_size(resize, axes)):
        raise ValueError(
            f"resize={shown(resize)} is not a size; expected True, False or (width, height), innermost axis first, "
            "one side for each axis of the map."
        )
    if not is_number(smooth) or smooth < 0:
        raise ValueError(f"smooth={shown(smooth)} is not a fraction of the map's side; expected a number >= 0.")
    grid = isinstance(layout, tuple) and _is_size(layout, range(1, 4 if image is None or ndim < 3 else ndim - 1))
    named = isinstance(layout, str) and layout in ("channels_first", "channels_last", "layer")
    if not (layout is None or named or grid or callable(layout)):
        raise ValueError(
            f"layout={shown(layout)} is not a layout; expected 'channels_first', 'channels_last', 'layer', (length,), "
            "(height, width), (depth, height, width), a function of the activation or None."
        )


def _is_size(value: object, axes: Sequence[int]) -> bool:
    """Does this give one side per axis, for one of these numbers of axes? A single number is the length of a single
    axis.
    """
    sides = value if isinstance(value, (tuple, list)) else (value,)
    return len(sides) in axes and all(map(is_positive_int, sides))


def _sides(size: int | Sequence[int]) -> tuple[int, ...]:
    """A size with its outermost axis first, in the order of a tensor's shape."""
    return tuple(int(side) for side in size)[::-1] if isinstance(size, Sequence) else (int(size),)


def resize_saliency(tensor: Tensor, saliency: Tensor, size: Resize, mode: str) -> Tensor:
    """Interpolate a map: to ``size`` = (width, height), to the shape of ``tensor`` if True, not at all if False.

    For one or three axes the innermost comes first, and a number is the length of a single one. 'bilinear' is linear
    along each axis there, as 'linear' and 'trilinear' are here. 'bicubic' needs two axes.

    >>> resize_saliency(torch.zeros(1, 3, 8, 6), torch.ones(1, 1, 2, 2), True, 'bilinear').shape
    torch.Size([1, 1, 8, 6])
    """
    check_tensor("tensor", tensor)
    check_maps_type("saliency", saliency)
    check_mode("mode", mode)
    if size is False:
        return saliency
    if not saliency.numel():
        raise ValueError(f"saliency={describe(saliency)} is not a batch of maps; expected (N, K, h, w).")
    if not (size is True or _is_size(size, (1, 2, 3))):
        raise ValueError(f"size={shown(size)} is not a size; expected True, False or (width, height).")
    shape = tuple(tensor.shape[2:]) if size is True else _sides(size)
    if len(shape) != saliency.ndim - 2 or saliency.ndim not in _LINEAR or (mode == "bicubic" and len(shape) != 2):
        raise ValueError(
            f"resize={size!r} and resize_mode={mode!r} do not apply to a map of shape {tuple(saliency.shape)}; "
            "expected one side per axis, and 'bicubic' for two axes only."
        )
    mode = _LINEAR[saliency.ndim] if mode in _LINEAR.values() else mode
    align_corners = False if mode.endswith(("linear", "bicubic")) else None
    with full_precision(saliency.device):
        return F.interpolate(saliency, shape, mode=mode, align_corners=align_corners)


def imsmooth(
    tensor: Tensor,
    sigma: float | Tensor,
    stride: int = 1,
    padding: int = 0,
    padding_mode: str = "constant",
    padding_value: float = 0,
) -> Tensor:
    r"""Filter an (N, C, H, W) tensor by a Gaussian of ``sigma`` pixels, in its own dtype and on its device.

    Tensors (N, C, L) and (N, C, D, H, W) work too.

    The kernel :math:`f_i \propto e^{-i^2 / 2\sigma^2}, |i| \le \lceil 4\sigma \rceil` sums to 1 and is applied along
    each axis. ``padding`` adds to the kernel's own half-width; modes: 'constant', 'reflect', 'replicate'.

    >>> imsmooth(torch.ones(1, 1, 3, 3), 0.5, padding_mode='replicate').allclose(torch.ones(1, 1, 3, 3))
    True
    """
    check_tensor("tensor", tensor)
    if tensor.ndim not in _LINEAR or not tensor.numel() or not tensor.is_floating_point():
        raise ValueError(f"tensor={describe(tensor)} of {tensor.dtype} is not an image; expected real (N, C, H, W).")
    sigma = sigma.item() if isinstance(sigma, Tensor) and not sigma.ndim else sigma  # as TorchRay's own code passes it
    most = max(MOST_SIGMA, *(2 * side for side in tensor.shape[2:]))  # the padding of a wider one would fill the memory
    _check_window(stride, padding, padding_mode, padding_value, 4 * most)
    if not is_number(sigma) or not 0 <= sigma <= most:
        raise ValueError(f"sigma={shown(sigma)} is not a standard deviation in pixels; expected a number, 0 to {most}.")
    width = math.ceil(4 * sigma)
    precision = torch.promote_types(tensor.dtype, torch.float32)
    at = torch.arange(-width, width + 1, dtype=precision, device=tensor.device)
    kernel = torch.exp(-(at**2) / (2 * max(sigma, 1e-12) ** 2))
    kernel = (kernel / kernel.sum()).to(tensor.dtype)
    value = padding_value if padding_mode == "constant" else None
    channels, axes = tensor.shape[1], tensor.ndim - 2
    convolve = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[axes]
    tensor = F.pad(tensor, [width + padding] * (2 * axes), mode=padding_mode, value=value)
    with full_precision(tensor.device):
        for axis in range(axes):
            along = kernel.view([-1 if i == axis else 1 for i in range(axes)]).expand(channels, 1, *[-1] * axes)
            strides = [stride if i == axis else 1 for i in range(axes)]
            tensor = convolve(tensor, along, stride=strides, groups=channels)
    return tensor


def _check_window(stride: object, padding: object, padding_mode: object, padding_value: object, most: int) -> None:
    check_count("stride", stride)
    if not is_int(padding) or not 0 <= padding <= most:
        raise ValueError(f"padding={shown(padding)} is not a number of pixels; expected an int, 0 to {most}.")
    if not isinstance(padding_mode, str) or padding_mode not in _PADDING_MODES:
        raise ValueError(f"padding_mode={shown(padding_mode)} is unknown; expected one of {', '.join(_PADDING_MODES)}.")
    if not is_number(padding_value):
        raise ValueError(f"padding_value={shown(padding_value)} is not a number; expected a finite one.")


def finish_map(saliency: Tensor, input: Tensor, resize: Resize, resize_mode: str, smooth: float) -> Tensor:
    """Resize a map, and smooth it by a Gaussian of sigma = ``smooth`` times its longest side.

    A map over a table of features (N, F) is not resized, unless it is a map along the feature axis, (N, 1, l).
    """
    if (input.ndim <= 2 and saliency.ndim != 3) or (resize is False and smooth == 0):
        return saliency
    reference = input[:, None] if input.ndim == 2 else input
    if saliency.ndim != reference.ndim or saliency.ndim not in _LINEAR:
        raise ValueError(
            f"resize={resize!r} and smooth={smooth!r} do not apply to a map of shape {tuple(saliency.shape)}; "
            f"expected an input with as many spatial axes, three at most, but it has shape {tuple(input.shape)}."
        )
    saliency = resize_saliency(reference, saliency, resize, resize_mode)
    if smooth > 0:
        saliency = imsmooth(saliency, smooth * max(saliency.shape[2:]), padding_mode="replicate")
    return saliency


def join_targets(results: list[Tensor], layer_shaped: bool = False) -> Tensor:
    """Join K maps along the channels, (N, K, h, w), or K attributions along a new axis, (N, K, C, ...)."""
    if len(results) == 1:
        return results[0]
    maps = results[0].shape[1] == 1 and not layer_shaped
    return torch.cat(results, 1) if maps else torch.stack(results, 1)
