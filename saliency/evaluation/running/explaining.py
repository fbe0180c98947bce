"""Maps of a batch by many methods: what fails is tried again by itself, so that it fails alone."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from inspect import signature
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn import Module

from saliency.engine.layers import Layer, resolve_layer
from saliency.engine.maps import check_map_options, finish_map
from saliency.engine.record import SharedForward
from saliency.engine.state import own_copy
from saliency.evaluation.printing import one_line
from saliency.rules import shared_forward

Result = TypeVar("Result")

DECIDED = ("resize", "debug")  # options that the runner sets, or cannot use


class UntoldError(Exception):
    """Stands for the error below where the release of torch does not tell it from others."""


# After it every call on the device fails, until the process ends.
FATAL: type[Exception] = getattr(torch, "AcceleratorError", UntoldError)


class Explainer(NamedTuple):
    """A method with its options, and how its maps are enlarged and smoothed to a size.

    One that ``shares`` gets a forward pass that serves all of its kind.
    """

    function: Callable[..., Any]
    options: dict[str, Any]
    smooth: float = 0
    resize_mode: str = "bilinear"
    shares: bool = False

    @property
    def layers(self) -> list[Layer]:
        """The layer that the method looks at, if that is said."""
        default = signature(self.function).parameters.get("saliency_layer")
        layer = self.options.get("saliency_layer", "" if default is None else default.default)
        return [layer] if layer is None or isinstance(layer, (str, Module)) else []


def make_explainer(name: str, function: Callable[..., Any], options: Mapping[str, Any]) -> Explainer:
    """The explainer of a method, whose options ``smooth`` and ``resize_mode`` are applied when a map gets its size.

    ``shared=True`` among the options says that the method takes a :func:`saliency.shared_forward`.
    """
    chosen = dict(options)
    smooth, mode, shares = chosen.pop("smooth", 0), chosen.pop("resize_mode", "bilinear"), chosen.pop("shared", False)
    check_map_options(False, mode, smooth, None)
    for option in DECIDED:
        if option in chosen:
            raise ValueError(f"options={option!r} of {name} is not for a benchmark to choose; others are accepted.")
    return Explainer(function, chosen, smooth, mode, shares)


def check_layers(model: Module, explainer: Explainer) -> None:
    """Raise ``ValueError`` for a name among the options that no layer of the network has."""
    for option, layer in explainer.options.items():
        if option.endswith("_layer") and isinstance(layer, str):
            resolve_layer(model, layer, option)


def centre(model: Module, input: Tensor, target: Tensor) -> Tensor:
    """The baseline that looks at nothing: 1 at the centre pixel, falling with the distance to 0 at the farthest."""
    columns = target.shape[1] if target.ndim == 2 else 1
    return _cone(input, tuple(input.shape[2:])).expand(len(input), columns, -1, -1)


def _cone(like: Tensor, size: Sequence[int]) -> Tensor:
    height, width = size
    y, x = (torch.arange(side, device=like.device, dtype=torch.float32) - side // 2 for side in (height, width))
    distance = torch.hypot(y[:, None], x[None, :])
    return (1 - distance / distance.max().clamp(min=1)).to(like.dtype)


def finish(explainer: Explainer, maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (N, K, h, w) at ``size`` = (height, width), smoothed there: sigma is a fraction of its longer side."""
    if explainer.function is centre:  # enlarged, its maximum would be beside the centre
        return _cone(maps, size).expand(*maps.shape[:2], -1, -1)
    finished = finish_map(maps, maps, size[::-1], explainer.resize_mode, explainer.smooth)
    # Interpolated, a constant has maxima, which are rounding errors.
    constant = maps.amax((2, 3), keepdim=True) == maps.amin((2, 3), keepdim=True)
    return torch.where(constant, maps[..., :1, :1], finished)


def attempt(compute: Callable[[], Result]) -> Result | str:
    """What is computed, or what went wrong. An error that leaves the device unusable is raised."""
    try:
        return compute()
    except FATAL:
        raise
    except Exception as error:
        return describe_error(error)


def isolate(compute: Callable[[list[int]], Sequence[Result]], items: list[int]) -> dict[int, Result | str]:
    """The results of all items at once; if that fails those of one after the other, each with what went wrong there."""
    found = attempt(lambda: compute(items))
    if not isinstance(found, str):
        return dict(zip(items, found, strict=True))
    if len(items) == 1:
        return {items[0]: found}
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    return {item: result for one in items for item, result in isolate(compute, [one]).items()}


def describe_error(error: BaseException) -> str:
    """An error in one line.

    >>> describe_error(ValueError("two\\nlines"))
    'ValueError: two lines'
    """
    return f"{type(error).__name__}: {one_line(error)[:500]}"


def explain_each(
    model: Module, input: Tensor, targets: Tensor, explainers: Mapping[str, Explainer]
) -> dict[str, tuple[Any, float]]:
    """Maps (N, K, h, w) of every method, or the exception that it raised, and its seconds.

    Those that can share one forward pass, of which each has its part of the seconds. The others have copies of their
    own of input and targets: what one writes into them is not seen by the next.
    """
    found: dict[str, tuple[Any, float]] = {}
    sharing = {name: explainer.layers for name, explainer in explainers.items() if explainer.shares}
    layers = list(dict.fromkeys(layer for own in sharing.values() for layer in own))
    begin = time.perf_counter()
    common = own_copy(input)
    shared = attempt(partial(shared_forward, model, common, layers)) if layers else None
    each = since(begin, input.device) / max(1, len(sharing))
    for name, explainer in explainers.items():
        sharer = name in sharing and isinstance(shared, SharedForward)
        options, own = ({"shared": shared}, common) if sharer else ({}, own_copy(input))
        begin = time.perf_counter()
        try:
            maps = explainer.function(model, own, own_copy(targets), **explainer.options, **options)
        except FATAL:
            raise
        except Exception as error:
            maps = error.with_traceback(None)  # which holds the tensors of every frame
        found[name] = maps, since(begin, input.device) + each * (name in sharing)
    return found


def since(begin: float, device: torch.device) -> float:
    """The seconds since then, what the device was asked to do included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


def explain_images(
    model: Module, input: Tensor, targets: Tensor, explainers: Mapping[str, Explainer]
) -> tuple[dict[str, dict[int, Tensor | str]], dict[str, float]]:
    """For every method and image its maps (K, h, w), or what went wrong; and the seconds of every method.

    All images are explained at once where that works.
    """
    everything = list(range(len(input)))
    seconds = dict.fromkeys(explainers, 0.0)
    together = attempt(lambda: explain_each(model, input, targets, explainers))

    def compute(name: str, images: list[int]) -> Sequence[Tensor]:
        if images == everything and isinstance(together, dict):
            maps, spent = together.pop(name)
        else:
            maps, spent = explain_each(model, input[images], targets[images], {name: explainers[name]})[name]
        seconds[name] += spent
        return checked_maps(name, maps, (len(images), targets.shape[1])).unbind()

    return {name: isolate(partial(compute, name), everything) for name in explainers}, seconds


def checked_maps(name: str, maps: Any, shape: tuple[int, int]) -> Tensor:
    """The maps (N, K, h, w) of a method, if they are some; an exception in their place is raised."""
    if isinstance(maps, Exception):
        raise maps
    if not isinstance(maps, Tensor) or maps.ndim != 4 or maps.shape[:2] != shape:
        shown = tuple(maps.shape) if isinstance(maps, Tensor) else type(maps).__name__
        raise ValueError(f"method={name!r} returned {shown}; maps of shape {(*shape, 'h', 'w')} are accepted.")
    return maps.detach()
