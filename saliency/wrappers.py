"""Wrappers: a method goes in, a method comes out."""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils._pytree import tree_map

from saliency.engine.call import check_inputs, make_call
from saliency.engine.checks import check_seed, is_number, is_positive_int, shown
from saliency.engine.fusing import check_fuse, fuse_maps
from saliency.engine.maps import check_map_options, finish_map

Method = TypeVar("Method", bound=Callable[..., Any])  # what is wrapped is called as before


def smooth_grad(method: Method, n_samples: int = 25, sigma: float = 0.15, seed: int = 0) -> Method:
    r"""SmoothGrad: the method, averaged over noisy copies of the input.

    .. math:: s(x) = \frac{1}{n} \sum_{i=1}^n \mathrm{method}(x + \epsilon_i), \quad
              \epsilon_i \sim N(0, \sigma^2 (\max x - \min x)^2)

    ``sigma`` is a fraction of each image's range of values. The noise has its own generator, so equal seeds give equal
    maps and the global random state stays. Every sample costs a call, and memory does not grow with ``n_samples``.
    Smilkov et al., SmoothGrad, 2017. Raises ``ValueError`` for fewer than one sample or a negative sigma.

    >>> smooth_grad(lambda model, x, target: x, n_samples=2, sigma=0)(None, torch.ones(1, 3), 0)
    tensor([[1., 1., 1.]])
    """
    _check_method(method, "smooth_grad(gradient)(model, input, target)")
    check_seed(seed)
    if not is_positive_int(n_samples):
        raise ValueError(f"n_samples={shown(n_samples)} is not a number of samples; expected an int >= 1.")
    if not is_number(sigma) or sigma < 0:
        raise ValueError(f"sigma={shown(sigma)} is not a fraction of the input's range; expected a number >= 0.")

    @wraps(method)
    def smoothed(model: Any, input: Any, *args: Any, **options: Any) -> Any:
        if options.get("debug"):
            raise ValueError("debug=True is not possible for a mean over noisy inputs; expected debug=False.")
        inputs = check_inputs(input)
        generator = torch.Generator(inputs[0].device).manual_seed(int(seed))
        total: Any = None
        result: Any = None
        for _ in range(n_samples):
            noisy = [_add_noise(tensor, sigma, generator) for tensor in inputs]
            result = method(model, noisy[0] if isinstance(input, Tensor) else tuple(noisy), *args, **options)
            total = tree_map(_wide, result) if total is None else tree_map(torch.add, total, result)
        return tree_map(lambda added, like: _as_precise(added / n_samples, like), total, result)

    return cast(Method, smoothed)


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


def fused(method: Method, fuse: str = "max", gamma: float | None = 2.0) -> Method:
    r"""One map of several layers: the maps of the method, normalised, and their ``'mean'``, ``'max'`` or ``'product'``.

    .. math:: s = \max_l \, \tanh\Bigl(\gamma \frac{\max(0, s_l)}{\max_u s_{lu}}\Bigr)

    The maps of the list of layers that the wrapped method is called with, each brought to the size of the largest. The
    maximum with ``gamma=2`` is LayerCAM's, ``gamma=None`` leaves out the hyperbolic tangent: then the product is
    RefineCAM's. Values are in [0, 1]. Jiang et al., LayerCAM, TIP 2021. Raises ``ValueError`` for another ``fuse``.

    >>> maps = lambda model, x, target, layers: [x, 2 - x]
    >>> fused(maps, "mean", gamma=None)(torch.nn.Identity(), torch.tensor([[[0.0, 2.0]]]), 0, ["a", "b"])
    tensor([[[0.5000, 0.5000]]])
    """
    _check_method(method, "fused(layer_cam)(model, input, target, ['layer3', 'layer4'])")
    check_fuse(fuse, gamma)

    @wraps(method)
    def of_layers(
        model: Any,
        input: Any,
        target: Any,
        saliency_layer: Any,
        resize: Any = False,
        resize_mode: str = "bilinear",
        smooth: float = 0,
        **options: Any,
    ) -> Any:
        if options.get("debug"):
            raise ValueError("debug=True is not possible for a map of several layers; expected debug=False.")
        image = make_call(model, input).image_of()
        check_map_options(resize, resize_mode, smooth, None, image)
        maps = method(model, input, target, saliency_layer, **options)
        return finish_map(
            fuse_maps(maps if isinstance(maps, list) else [maps], fuse, gamma), image, resize, resize_mode, smooth
        )

    return cast(Method, of_layers)


def _check_method(method: object, call: str) -> None:
    if not callable(method) or isinstance(method, Module):
        raise ValueError(
            f"method={shown(method)} is not a method; expected a function such as gradient, whose result is called: "
            f"{call}."
        )
