"""One method on a network: is its map right, what does it cost, and if it has nothing to explain there, why?"""

import copy
from collections.abc import Mapping
from inspect import signature
from math import prod
from time import process_time
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from saliency import METHODS, layer_candidates
from saliency import saliency as driver
from saliency.cli.settings import BATCHED, LONG

FEW: Mapping[str, object] = {"n_steps": 3, "n_samples": 2, "num_samples": 1, "num_masks": 20, "max_iter": 3}
EQUAL = 1e-3  # of the map's largest value: float32, and other kernels for other batches
CELLS = 4  # a side of the image, for methods that change a cell after the other
SCORED = ("score_cam", "ss_cam", "is_cam")  # as many forward passes as their layer has channels
# Though they look for a layer where none is named.
OTHER_GRID = ("guided_grad_cam", "refine_cam", "contrastive_excitation_backprop", *SCORED)


class Found(NamedTuple):
    """The outcome of a method: its time, a problem, or the reason why the network has nothing for it to explain."""

    seconds: float = 0.0
    problem: str = ""
    reason: str = ""


def difference(both: Tensor, alone: Tensor) -> float:
    """The largest difference, as a share of the largest value."""
    return float((both - alone).abs().max() / alone.abs().max().clamp(min=1e-30))


def activations(model: nn.Module, input: Tensor, target: Any, layer: Any = None) -> Any:
    """The activation (N, C, ...) at a layer, or the one that is found, on the grid that is read; a list of a list."""
    options: dict[str, Any] = {"gradient_to_saliency": torch.clone, "get_backward_gradient": None}
    return driver(model, input, target, layer, **options)


def _of_fewest_channels(model: nn.Module, input: Tensor, target: Any) -> str:
    names = [each.name for each in layer_candidates(model, input[:1], target=target) if not each.problem]
    maps = activations(model, input[:1], target, names)
    several = [(x.shape[1], name) for x, name in zip(maps, names, strict=True) if prod(x.shape[2:]) > 1]
    return min(several or [(0, names[-1])], key=lambda each: each[0])[1]


def few(method: str, model: nn.Module, input: Tensor, target: Any) -> dict[str, Any]:
    """The options of a method that it takes a few passes with: few samples, large features, few channels."""
    known = METHODS[method].options
    options: dict[str, Any] = {name: value for name, value in FEW.items() if name in known}
    if "n_steps" in options or "n_samples" in options:
        options["internal_batch_size"] = 4
    cell = [-(-side // CELLS) for side in input.shape[2:]]
    if "feature_mask" in known:
        numbers = torch.arange(CELLS ** len(cell)).view(1, 1, *[CELLS] * len(cell))
        for axis, (of, side) in enumerate(zip(cell, input.shape[2:], strict=True), 2):
            numbers = numbers.repeat_interleave(of, axis).narrow(axis, 0, side)
        options |= {"saliency_layer": "", "feature_mask": numbers}
    elif "sliding_window_shapes" in known:
        options |= dict.fromkeys(("sliding_window_shapes", "strides"), (input.shape[1], *cell))
    elif method in SCORED:
        options["saliency_layer"] = _of_fewest_channels(model, input, target)
    return options


def examine_method(method: str, model: nn.Module, input: Tensor, target: Any, grid: tuple[int, ...]) -> Found:
    """Explain two inputs at once and, where that is quick, one by one: the maps are the same, finite and of the grid.

    ``grid`` is that of the layer that is found. A method that needs what the network lacks gives its reason.
    """
    row = METHODS[method]
    try:
        options = few(method, model, input, target)
        start = process_time()
        both = row.function(model, input, target, **options)
        seconds = process_time() - start
        problem = _of_shape(method, both, grid, input) or ("" if both.isfinite().all() else "not finite")
        if not problem and method not in (*LONG, *BATCHED):
            problem = _of_batch(method, model, input, target, options, both)
    except Exception as error:  # whatever it is, the sweep goes on and the table says so
        text = f"{error}".split("\n")[0]
        if row.is_for_some and isinstance(error, ValueError):
            return Found(reason=text)
        return Found(problem=f"{method}: {type(error).__name__}: {text}")
    return Found(round(seconds, 4), f"{method}: {problem}" if problem else "")


def _of_shape(method: str, maps: Tensor, grid: tuple[int, ...], input: Tensor) -> str:
    layer = signature(METHODS[method].function).parameters.get("saliency_layer")
    searched = layer is not None and layer.default is None and method not in OTHER_GRID
    wanted = grid if searched and "feature_mask" not in METHODS[method].options else maps.shape[2:]
    of_clip = maps.ndim < input.ndim and input.shape[2] == 3  # (B, T, 3, h, w): a map of each frame
    wanted = (input.shape[1] if of_clip else 1, *wanted)
    return "" if maps.shape == (2, *wanted) else f"a map of shape {tuple(maps.shape)}"


def _of_batch(method: str, model: nn.Module, input: Tensor, target: Any, options: dict[str, Any], both: Tensor) -> str:
    explain = METHODS[method].function

    def apart(model: nn.Module, input: Tensor) -> Tensor:
        return torch.cat([explain(model, x[None], target, **options) for x in input])

    alone = apart(model, input)
    if difference(both, alone) > EQUAL:  # by more than rounding?
        exact, input = copy.deepcopy(model).double(), input.double()
        both, alone = explain(exact, input, target, **options), apart(exact, input)
    off = difference(both, alone)
    return f"a batch differs from its images by {off:.1%}" if off > EQUAL else ""
