"""Wrappers: a method goes in, a method comes out."""

from collections.abc import Callable, Sequence
from functools import partial, wraps
from math import cos, radians, sin
from typing import Any, NamedTuple, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from saliency.engine.call import check_inputs
from saliency.engine.checks import check_seed, describe, is_number, is_positive_int, shown
from saliency.engine.maps import safe_divide

Method = TypeVar("Method", bound=Callable[..., Any])  # what is wrapped is called as before

# What is added up over the samples, of a map and that of the first sample; and what becomes of the means of it.
_Terms = Callable[[Tensor, Tensor], list[Tensor]]
_POWERS: dict[str, tuple[_Terms, Callable[..., Tensor]]] = {
    "mean": (lambda s, first: [s], lambda mean: mean),
    "squared": (lambda s, first: [s.square()], lambda mean: mean),
    "variance": (lambda s, first: [s - first, (s - first).square()], lambda mean, square: square - mean.square()),
}


def smooth_grad(method: Method, n_samples: int = 25, sigma: float = 0.15, seed: int = 0, power: str = "mean") -> Method:
    r"""SmoothGrad: the method, averaged over noisy copies of the input.

    .. math:: s(x) = \frac{1}{n} \sum_{i=1}^n \mathrm{method}(x + \epsilon_i), \quad
              \epsilon_i \sim N(0, \sigma^2 (\max x - \min x)^2)

    ``sigma`` is a fraction of each image's range of values. ``power`` may be ``'squared'``, the mean of the squared
    maps, or ``'variance'`` (VarGrad). The noise has its own generator, so equal seeds give equal maps and the global
    random state stays. Every sample costs a call, and memory does not grow with ``n_samples``.
    Smilkov et al., SmoothGrad, 2017. Raises ``ValueError`` for fewer than one sample or a negative sigma.

    >>> smooth_grad(lambda model, x, target: x, n_samples=2, sigma=0)(None, torch.ones(1, 3), 0)
    tensor([[1., 1., 1.]])
    """
    _check_method(method, "smooth_grad")
    check_seed(seed)
    if not is_positive_int(n_samples):
        raise ValueError(f"n_samples={shown(n_samples)} is not a number of samples; expected an int >= 1.")
    if not is_number(sigma) or sigma < 0:
        raise ValueError(f"sigma={shown(sigma)} is not a fraction of the input's range; expected a number >= 0.")
    if not (isinstance(power, str) and power in _POWERS):
        raise ValueError(f"power={shown(power)} is not a power of the map; expected one of {', '.join(_POWERS)}.")
    terms, finish = _POWERS[power]

    @wraps(method)
    def smoothed(model: Any, input: Any, *args: Any, **options: Any) -> Any:
        _refuse_probes(options)
        inputs = check_inputs(input)
        generator = torch.Generator(inputs[0].device).manual_seed(int(seed))
        first: list[Tensor] = []
        totals: list[list[Tensor]] = []
        for _ in range(n_samples):
            noisy = [_add_noise(tensor, sigma, generator) for tensor in inputs]
            result = method(model, noisy[0] if isinstance(input, Tensor) else tuple(noisy), *args, **options)
            leaves, form = tree_flatten(result)
            wide = [_wide(leaf) for leaf in leaves]
            first = first or wide
            added = [terms(*pair) for pair in zip(wide, first, strict=True)]
            totals = [list(map(torch.add, *pair)) for pair in zip(totals, added, strict=True)] if totals else added
        means = [finish(*(total / n_samples for total in of_leaf)) for of_leaf in totals]
        return tree_unflatten([_as_precise(*pair) for pair in zip(means, leaves, strict=True)], form)

    return cast(Method, smoothed)


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
    _check_method(method, "augmented")
    listed = list(warps) if isinstance(warps, Sequence) else []
    if not listed or not all(isinstance(warp, Warp) for warp in listed):
        raise ValueError(f"warps={shown(warps)} is not a list of changes; expected Warp(...), one at least.")
    for warp in listed:
        if not all(map(is_number, (warp.angle, warp.scale, *warp.shift, warp.gain))) or warp.scale <= 0:
            raise ValueError(f"warps={warp!r} cannot be undone; expected finite numbers and scale > 0.")

    @wraps(method)
    def averaged(model: Any, input: Any, *args: Any, **options: Any) -> Any:
        _refuse_probes(options)
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


def low_pass(method: Method, cutoff: float) -> Method:
    """FORGrad: the method's maps without their high frequencies.

    What varies faster than ``cutoff`` is removed, as a fraction of the highest frequency that the map can hold; 1
    removes the corners of the spectrum alone. Signed attributions (``reduction=None``) are filtered as they are, which
    is the paper's filter. Muzellec et al., Saliency Strikes Back: How Filtering out High Frequencies Improves White-Box
    Explanations, ICML 2024.

    >>> low_pass(lambda model, x, target: x, 0.5)(None, torch.tensor([[[1.0, -1.0, 1.0, -1.0]]]), 0)
    tensor([[[0., 0., 0., 0.]]])
    """
    _check_method(method, "low_pass")
    if not is_number(cutoff) or not 0 < cutoff <= 1:
        raise ValueError(f"cutoff={shown(cutoff)} is not a share of the frequencies; expected 0 < cutoff <= 1.")

    def smooth(saliency: Tensor) -> Tensor:
        if saliency.ndim < 3:
            raise ValueError(f"method made {describe(saliency)}, no map to filter; expected (N, K, h, w).")
        axes = tuple(range(2, saliency.ndim))
        squares = [torch.fft.fftfreq(side, 0.5, device=saliency.device).square() for side in saliency.shape[2:]]
        kept = sum(torch.meshgrid(*squares, indexing="ij"), torch.zeros(())) <= cutoff**2
        return _as_precise(torch.fft.ifftn(torch.fft.fftn(_wide(saliency), dim=axes) * kept, dim=axes).real, saliency)

    return _finished(method, smooth)


def normalised(method: Method, by: str = "max") -> Method:
    r"""The method's maps on one scale: each divided by its largest absolute value, or as ``by`` says.

    ``'max'``: :math:`s / \max |s|`; ``'minmax'``: :math:`(s - \min s) / (\max s - \min s)`, from 0 to 1; ``'sum'``:
    :math:`s / \sum |s|`. A constant map becomes 0 by ``'minmax'``, and a map of zeros stays one.

    >>> normalised(lambda model, x, target: x)(None, torch.tensor([[[1.0, -4.0]]]), 0)
    tensor([[[ 0.2500, -1.0000]]])
    """
    _check_method(method, "normalised")
    if not (isinstance(by, str) and by in ("max", "minmax", "sum")):
        raise ValueError(f"by={shown(by)} is not a scale; expected 'max', 'minmax' or 'sum'.")

    def scale(saliency: Tensor) -> Tensor:
        axes = tuple(range(2, saliency.ndim)) or (1,)
        if by == "minmax":
            saliency = saliency - saliency.amin(axes, keepdim=True)
        size = saliency.abs()
        return safe_divide(saliency, size.sum(axes, keepdim=True) if by == "sum" else size.amax(axes, keepdim=True))

    return _finished(method, scale)


def _finished(method: Method, change: Callable[[Tensor], Tensor]) -> Method:
    """The method, whose maps are changed."""

    @wraps(method)
    def changed(model: Any, input: Any, *args: Any, **options: Any) -> Any:
        _refuse_probes(options)
        return tree_map(change, method(model, input, *args, **options))

    return cast(Method, changed)


def _check_method(method: object, name: str) -> None:
    if not callable(method) or isinstance(method, Module):
        raise ValueError(
            f"method={shown(method)} is not a method; expected a function such as gradient, whose result is called: "
            f"{name}(gradient)(model, input, target)."
        )


def _refuse_probes(options: dict[str, Any]) -> None:
    for option in ("debug", "return_convergence_delta"):
        if options.get(option):
            raise ValueError(f"{option}=True is not possible for a wrapped method; expected {option}=False.")


def _warped(x: Tensor, matrix: Tensor, outside: str) -> Tensor:
    grid = F.affine_grid(matrix[None, :2].to(x).expand(len(x), -1, -1), list(x.shape), align_corners=False)
    warped: Tensor = F.grid_sample(x, grid, padding_mode=outside, align_corners=False)
    return warped


def _changed_back(saliency: Tensor, matrix: Tensor) -> Tensor:
    """The maps (N, K, h, w) of a changed image where they are in the image, and behind them where that is seen."""
    if saliency.ndim != 4:
        raise ValueError(f"method made {describe(saliency)}, which cannot be changed back; expected maps (N, K, h, w).")
    seen = torch.cat([_wide(saliency), torch.ones_like(_wide(saliency[:, :1]))], 1)
    return _warped(seen, torch.linalg.inv(matrix), "zeros")


def _wide(x: Tensor) -> Tensor:
    """In float32 at least: a sum of hundreds in bfloat16 stops to grow."""
    return x.to(torch.promote_types(x.dtype, torch.float32)) if x.is_floating_point() else x


def _as_precise(x: Tensor, like: Tensor) -> Tensor:
    return x.to(like.dtype) if like.is_floating_point() else x


def _add_noise(tensor: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    tensor = tensor.detach()
    per_image = tuple(range(1, tensor.ndim))
    spread = sigma * (tensor.amax(per_image, keepdim=True) - tensor.amin(per_image, keepdim=True))
    noise = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype, device=tensor.device)
    return tensor + spread * noise
