"""Layers: find them by name, through the wrappers that models come in."""

from contextlib import ExitStack
from difflib import get_close_matches
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils._pytree import tree_leaves

from saliency.engine.layouts import grid_of
from saliency.engine.probe import add_hook
from saliency.engine.state import evaluating, modules_of
from saliency.engine.targets import main_output

Layer: TypeAlias = str | Module | None

_WRAPPERS = (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)
_POOLS = (torch.nn.AdaptiveAvgPool2d, torch.nn.AdaptiveMaxPool2d)


def unwrap(model: Module) -> Module:
    """The network inside DataParallel, DistributedDataParallel and ``torch.compile``."""
    if not isinstance(model, Module):
        raise ValueError(f"model={type(model).__name__} is no network; a torch.nn.Module is accepted.")
    while True:
        if isinstance(model, _WRAPPERS):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), Module):
            model = inner
        else:
            return model


def _plain_name(name: str) -> str:
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def get_module(model: Module, module: str | Module) -> Module | None:
    """The layer of that name, as ``named_modules()`` spells it; ``None`` if there is none. A module is itself.

    >>> get_module(torch.nn.Sequential(torch.nn.ReLU()), '0')
    ReLU()
    """
    if isinstance(module, Module):
        return module
    inner, name = unwrap(model), _plain_name(module)
    found = _descend(inner, name)
    return _descend(inner, name.removeprefix("module.")) if found is None else found


def _descend(module: Module, name: str) -> Module | None:
    for part in name.split(".") if name else ():
        if part not in module._modules:
            return None
        child = module._modules[part]
        while child is not None and "_orig_mod" in child._modules:  # compiled: the layer itself goes by its plain name
            child = child._modules["_orig_mod"]
        if child is None:
            return None
        module = child
    return module


def resolve_layer(model: Module, layer: str | Module, argument: str = "saliency_layer") -> Module:
    """As :func:`get_module`, but an unknown layer raises ``ValueError`` with the nearest name."""
    if not isinstance(layer, (str, Module)):
        raise ValueError(f"{argument}={layer!r} is no layer; a dotted name, a module, '' or None is accepted.")
    found, inner = get_module(model, layer), unwrap(model)
    if found is not None and (isinstance(layer, str) or unwrap(found) in modules_of(inner)):
        return unwrap(found)
    if isinstance(layer, Module):
        raise ValueError(f"{argument}={type(layer).__name__} is not part of the model; one of its modules is accepted.")
    names = [_plain_name(name) for name, _ in inner.named_modules() if name]
    near = get_close_matches(layer, names, n=1, cutoff=0.0)
    hint = f"did you mean {near[0]!r}? A" if near else "a"
    raise ValueError(
        f"{argument}={layer!r} is no layer of the model; {hint} name in model.named_modules() is accepted."
    )


class _SpatialOutputs:
    """The last module with a grid as output, and those to choose from where the last may not be the right one.

    In a network of tokens these are the layers of tokens; with ``follow``, all layers with a grid.
    """

    def __init__(self, size: tuple[int, ...], follow: bool) -> None:
        self.size = size
        self.follow = follow
        self.last = ""
        self.candidates: dict[str, Tensor] = {}

    def watch(self, name: str, module: Module) -> Any:
        def hook(module: Module, args: Any, output: Any) -> Any:
            first = next((leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)), None)
            if first is None or first.shape[:1] != (1,) or isinstance(module, _POOLS) or not self._is_grid(first):
                return None
            if first.ndim != 3 and not self.follow:
                self.last, self.candidates = name, {}
                return None
            if output is not first or isinstance(module, torch.nn.Linear):
                return None
            torch.set_grad_enabled(True)
            self.candidates[name] = first if first.requires_grad else first.detach().requires_grad_()
            return self.candidates[name].clone()

        return add_hook(module.register_forward_hook, hook)

    def _is_grid(self, x: Tensor) -> bool:
        grid = grid_of(x, self.size)
        # Between layers of tokens, four dimensions are those of attention: heads, tokens, and tokens or features.
        attention = x.ndim == 4 and any(x.shape[2] == other.shape[1] for other in self.candidates.values())
        return grid is not None and grid.numel() > 1 and not (attention and not self.follow)

    def choose(self, output: Any) -> str:
        """The last candidate that the scores depend on everywhere: the class token alone leaves the last layers."""
        output = main_output(output)
        scores = next((leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.requires_grad), None)
        if not self.candidates or scores is None:
            return self.last
        weight = torch.linspace(1, 2, scores.numel(), dtype=scores.dtype, device=scores.device)  # softmaxes sum to 1
        score = (scores.flatten() * weight).sum()
        gradients = torch.autograd.grad(score, list(self.candidates.values()), allow_unused=True)
        for name, gradient in reversed(list(zip(self.candidates, gradients, strict=True))):
            if gradient is not None and (gradient.ndim != 3 or (gradient != 0).any(2).float().mean() > 0.5):
                return name
        return self.last


def find_layer(model: Module, input: Tensor, /, *args: Any, **kwargs: Any) -> str:
    """The name of the last layer whose output is a grid that the output still depends on everywhere.

    That is the last block of a convolutional network, and the last normalisation before attention in a vision
    transformer. Costs one forward pass of the first image (in a transformer also a backward pass); further arguments
    reach the model. Raises ``ValueError`` where no layer has a spatial output.

    >>> find_layer(torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Flatten()), torch.rand(1, 1, 6, 6))
    '0'
    """
    inner = unwrap(model)
    images = input.shape[0]

    def first(value: Any) -> Any:
        return value[:1].detach().clone() if isinstance(value, Tensor) and value.shape[:1] == (images,) else value

    image = next((value for value in (input, *args) if isinstance(value, Tensor) and value.ndim > 2), input)
    for follow in (False, True):
        outputs = _SpatialOutputs(tuple(image.shape[2:]), follow)
        with evaluating(inner), ExitStack() as stack:
            for path, module in inner.named_modules():
                if path:
                    stack.callback(outputs.watch(_plain_name(path), module).remove)
            output = inner(first(input), *map(first, args), **{key: first(value) for key, value in kwargs.items()})
            stack.close()
            single = isinstance(output, Tensor)
            name = outputs.choose(output) if single or follow else ""
        if single:
            break  # only of several outputs, one may be made by layers that the score does not depend on
    if not name:
        raise ValueError("saliency_layer=None finds no layer with a spatial output; a layer's name is accepted.")
    return name
