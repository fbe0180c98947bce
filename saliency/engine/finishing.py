"""Finishing: from a site's tensors and their gradients to maps of the requested size."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from saliency.engine.call import Call
from saliency.engine.checks import describe, shown
from saliency.engine.contexts import outside_rules
from saliency.engine.interrupts import interruptible
from saliency.engine.layers import Layer
from saliency.engine.layouts import Layout, to_channels_first
from saliency.engine.maps import Resize, check_axes, check_map_options, finish_map
from saliency.engine.site import Site


def check_finish(
    call: Call, layers: Sequence[Layer], resize: object, resize_mode: object, smooth: object, layout: object
) -> None:
    """Raise ``ValueError`` for options with which no map of these layers can be made."""
    check_map_options(resize, resize_mode, smooth, layout, call.image)
    further = [x for x in tree_leaves((call.args, call.kwargs)) if isinstance(x, Tensor) and _is_like(x, call.image)]
    sizes = {tuple(x.shape[2:]) for x in (*call.inputs, *further) if x.ndim > 2}
    if resize is True and len(sizes) > 1 and any(layer != "" for layer in layers):
        raise ValueError(
            f"resize=True is ambiguous at a layer, as inputs have sizes {sorted(sizes)}; expected (width, height)."
        )


def _is_like(x: Tensor, image: Tensor) -> bool:
    """Is this another image of the same kind, perhaps of another size?"""
    return x.is_floating_point() and x.ndim == image.ndim and x.shape[:2] == image.shape[:2]


class Finish(NamedTuple):
    """How the tensors of a site, each with its gradient, become finished maps."""

    call: Call
    layout: Layout
    gradient_to_saliency: Callable[[Tensor], Tensor]
    resize: Resize
    resize_mode: str
    smooth: float

    @outside_rules()
    @torch.no_grad()
    def maps(self, site: Site, tensors: Sequence[Tensor]) -> list[Tensor]:
        """One map per tensor; for all calls of a layer, their sum."""
        found = [self._map(site, _changed(x, lambda values: values.to(self.call.dtype))) for x in tensors]
        if site.call != "all":
            return found
        if len({x.shape for x in found}) > 1:
            shapes = ", ".join(str(tuple(x.shape)) for x in found)
            raise ValueError(f"call='all' is not possible for maps of shapes {shapes}; expected a call's index.")
        return [torch.stack(found).sum(0)]

    def _map(self, site: Site, x: Tensor) -> Tensor:
        # The input is (N, C, H, W), whatever the layout of the layers.
        layout = self.layout if site.name or x.ndim < 3 else "layer"
        if not site.name and self.layout != "layer" and self.call.is_clip(x):
            x = _changed(x, lambda clip: clip.flatten(0, 1))
        image = self.call.image_of(x.shape[0] if x.ndim else 0) if site.name else x
        grid = _to_grid(x, image, layout, site)
        with interruptible():
            saliency = self.gradient_to_saliency(grid)
        if not isinstance(saliency, Tensor):
            raise ValueError(f"gradient_to_saliency={self.gradient_to_saliency!r} returned no tensor; expected a map.")
        check_axes("gradient_to_saliency", self.gradient_to_saliency, grid, saliency)
        saliency = finish_map(saliency, image, self.resize, self.resize_mode, self.smooth)
        if self.layout == "layer" or not len(saliency) == len(image) != self.call.samples:
            return saliency
        of_frames: Tensor = saliency.unflatten(0, (self.call.samples, -1))
        return of_frames.squeeze(2)  # (B, T, h, w)


def _changed(x: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply a function to a tensor and to its gradient, and to that gradient's own, and so on."""
    changed = change(x)
    if changed is not x and x.grad is not None:
        changed.grad = _changed(x.grad, change)
    return changed


def _to_grid(x: Tensor, image: Tensor, layout: Layout, site: Site) -> Tensor:
    if x.shape[:1] != image.shape[:1] and not (layout == "layer" or callable(layout)):
        raise ValueError(
            f"{site.said} returns {tuple(x.shape)}, which is not a batch of {len(image)} images; expected "
            "a layer with one row per image, or layout=function."
        )
    seen = site.seen or ()
    grid = _changed(x, lambda values: to_channels_first(values, image.shape[2:], layout, site.module, seen))
    if callable(layout) and grid.shape[:1] != image.shape[:1]:
        raise ValueError(
            f"layout={shown(layout)} returned {describe(grid)} for an activation {tuple(x.shape)} of {len(image)} "
            "images; expected (N, C, h, w)."
        )
    return grid
