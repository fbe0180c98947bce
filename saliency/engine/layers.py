"""Layers: find them by name, through the wrappers around a model."""

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch.nn import Module

from saliency.engine.checks import check_type, did_you_mean, shown
from saliency.engine.state import modules_of

Layer: TypeAlias = str | Module | None
Layers: TypeAlias = Layer | Sequence[Layer]

_STEPS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_WRAPPERS = (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)


def unwrap(model: Module) -> Module:
    """The network inside DataParallel, DistributedDataParallel and ``torch.compile``."""
    if not isinstance(model, Module):
        raise ValueError(f"model={type(model).__name__} is not a model; expected a torch.nn.Module.")
    while True:
        if isinstance(model, _WRAPPERS):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), Module):
            model = inner
        else:
            return model


def plain_name(name: str) -> str:
    """The path of a module without the parts that belong to compiled, sharded and checkpointed wrappers."""
    return ".".join(part for part in name.split(".") if part not in _STEPS)


def _inside(module: Module) -> Module:
    """The layer inside its wrappers."""
    step = next((step for step in _STEPS if step in module._modules), None)
    inner = None if step is None else module._modules[step]
    return module if inner is None else _inside(inner)


def get_module(model: Module, module: str | Module) -> Module | None:
    """The layer with that name, as in ``named_modules()``; ``None`` if there is none. A module is returned as it is.

    >>> get_module(torch.nn.Sequential(torch.nn.ReLU()), '0')
    ReLU()
    """
    if isinstance(module, Module):
        return module
    check_type("module", module, str, "a dotted name or a torch.nn.Module")
    inner, name = unwrap(model), plain_name(module)
    found = _descend(inner, name)
    return _descend(inner, name.removeprefix("module.")) if found is None else found


def _descend(module: Module, name: str) -> Module | None:
    for part in name.split(".") if name else ():
        children = _inside(module)._modules
        child = children[part] if part in children else None  # noqa: SIM401 - TorchScript's have no get()
        if child is None:
            return None
        module = _inside(child)
    return module


def resolve_layer(model: Module, layer: str | Module, argument: str = "saliency_layer") -> Module:
    """Like :func:`get_module`, but raise ``ValueError`` with the closest name for an unknown layer."""
    if not isinstance(layer, (str, Module)):
        raise ValueError(f"{argument}={shown(layer)} is not a layer; expected a dotted name, a module, '' or None.")
    found, inner = get_module(model, layer), unwrap(model)
    if found is not None and (isinstance(layer, str) or unwrap(found) in modules_of(inner)):
        return unwrap(found)
    if isinstance(layer, Module):
        raise ValueError(f"{argument}={type(layer).__name__} is not part of the model; expected one of its modules.")
    names = [plain_name(name) for name, _ in inner.named_modules() if name]
    raise ValueError(
        f"{argument}={shown(layer)} is not a layer of the model{did_you_mean(layer, names, cutoff=0)}; "
        "expected a name in model.named_modules()."
    )
