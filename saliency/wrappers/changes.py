"""Changes of finished maps: filtered, normalised, or fused over several layers."""

from collections.abc import Callable
from functools import wraps
from typing import cast

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils._pytree import tree_map

from saliency.engine.call import Input, make_call
from saliency.engine.checks import describe, is_number, shown
from saliency.engine.fusing import check_fuse, fuse_maps
from saliency.engine.layers import Layers
from saliency.engine.maps import Resize, check_map_options, finish_map, safe_divide
from saliency.engine.signatures import Maps
from saliency.engine.targets import Target
from saliency.wrappers.wrapping import Method, as_precise, check_method, refuse_probes, wide


def low_pass(method: Method, cutoff: float) -> Method:
    """FORGrad: the method's maps without their high frequencies.

    Removes everything above ``cutoff``, a fraction of the highest frequency that the map can represent; 1 removes
    only the corners of the spectrum. With ``reduction=None``, signed attributions are filtered, as in the paper.
    Muzellec et al., Saliency Strikes Back: How Filtering out High Frequencies Improves White-Box Explanations, ICML
    2024.

    >>> low_pass(lambda model, x, target: x, 0.5)(None, torch.tensor([[[1.0, -1.0, 1.0, -1.0]]]), 0)
    tensor([[[0., 0., 0., 0.]]])
    """
    check_method(method, "low_pass")
    if not is_number(cutoff) or not 0 < cutoff <= 1:
        raise ValueError(f"cutoff={shown(cutoff)} is not a fraction of the frequencies; expected a number in (0, 1].")

    def smooth(saliency: Tensor) -> Tensor:
        if saliency.ndim < 3:
            raise ValueError(f"method returned {describe(saliency)}, which is not a map; expected (N, K, h, w).")
        axes = tuple(range(2, saliency.ndim))
        squares = [torch.fft.fftfreq(side, 0.5, device=saliency.device).square() for side in saliency.shape[2:]]
        kept = sum(torch.meshgrid(*squares, indexing="ij"), torch.zeros((), device="cpu")) <= cutoff**2
        return as_precise(torch.fft.ifftn(torch.fft.fftn(wide(saliency), dim=axes) * kept, dim=axes).real, saliency)

    return _finished(method, smooth)


def normalised(method: Method, by: str = "max") -> Method:
    r"""The method's maps on a common scale: divided by their largest absolute value, or as ``by`` says.

    ``'max'``: :math:`s / \max |s|`; ``'minmax'``: :math:`(s - \min s) / (\max s - \min s)`, in [0, 1]; ``'sum'``:
    :math:`s / \sum |s|`. With ``'minmax'``, a constant map becomes 0; a map of zeros is unchanged.

    >>> normalised(lambda model, x, target: x)(None, torch.tensor([[[1.0, -4.0]]]), 0)
    tensor([[[ 0.2500, -1.0000]]])
    """
    check_method(method, "normalised")
    if not (isinstance(by, str) and by in ("max", "minmax", "sum")):
        raise ValueError(f"by={shown(by)} is not a normalisation; expected 'max', 'minmax' or 'sum'.")

    def scale(saliency: Tensor) -> Tensor:
        axes = tuple(range(2, saliency.ndim)) or (1,)
        if by == "minmax":
            saliency = saliency - saliency.amin(axes, keepdim=True)
        size = saliency.abs()
        return safe_divide(saliency, size.sum(axes, keepdim=True) if by == "sum" else size.amax(axes, keepdim=True))

    return _finished(method, scale)


def fused(method: Method, fuse: str = "max", gamma: float | None = 2.0) -> Method:
    r"""One map of several layers: the ``'mean'``, ``'max'`` or ``'product'`` of the method's normalised maps.

    .. math:: s = \max_l \, \tanh\Bigl(\gamma \frac{\max(0, s_l)}{\max_u s_{lu}}\Bigr)

    over the list of layers that the wrapped method is called with, each map resized to the largest. The maximum
    with ``gamma=2`` is LayerCAM's. ``gamma=None`` omits the hyperbolic tangent; the product is then RefineCAM's.
    Values are in [0, 1]. Jiang et al., LayerCAM, TIP 2021. Raises ``ValueError`` for another ``fuse``.

    >>> maps = lambda model, x, target, layers: [x, 2 - x]
    >>> fused(maps, "mean", gamma=None)(torch.nn.Identity(), torch.tensor([[[0.0, 2.0]]]), 0, ["a", "b"])
    tensor([[[0.5000, 0.5000]]])
    """
    check_method(method, "fused")
    check_fuse(fuse, gamma)

    @wraps(method)
    def of_layers(
        model: Module,
        input: Input,
        target: Target,
        saliency_layer: Layers,
        resize: Resize = False,
        resize_mode: str = "bilinear",
        smooth: float = 0,
        **options: object,
    ) -> Maps:
        refuse_probes(options)
        image = make_call(model, input).image_of()
        check_map_options(resize, resize_mode, smooth, None, image)
        maps = method(model, input, target, saliency_layer, **options)
        return finish_map(
            fuse_maps(maps if isinstance(maps, list) else [maps], fuse, gamma), image, resize, resize_mode, smooth
        )

    return cast(Method, of_layers)


def _finished(method: Method, change: Callable[[Tensor], Tensor]) -> Method:
    """The method with its maps changed."""

    @wraps(method)
    def changed(model: Module, input: Input, *args: object, **options: object) -> Maps:
        refuse_probes(options)
        return tree_map(change, method(model, input, *args, **options))

    return cast(Method, changed)
