"""What a call changes outside itself, and puts back."""

import sys
import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

# Overlapping calls share a change: the first makes it, the last undoes it. Entries live only as long as a call does.
_lock = threading.Lock()
_held: dict[Hashable, tuple[int, Callable[[], Any]]] = {}


@contextmanager
def _shared(changes: dict[Hashable, Callable[[], Callable[[], Any]]]) -> Iterator[None]:
    taken: list[Hashable] = []
    try:
        with _lock:
            for key, change in changes.items():
                count, undo = _held[key] if key in _held else (0, change())
                _held[key] = (count + 1, undo)
                taken.append(key)
        yield
    finally:
        with _lock:
            for key in taken:
                count, undo = _held.pop(key)
                if count > 1:
                    _held[key] = (count - 1, undo)
                else:
                    undo()


def _to_eval(module: Module) -> Callable[[], None]:
    # Not module.eval(): networks override train() with side effects, and train() is not its inverse.
    training = module.training
    if training:
        module.training = False
    return lambda: setattr(module, "training", training) if training else None


def _to_eager() -> Callable[[], None]:
    stance = torch.compiler.set_stance("force_eager")
    return lambda: stance.__exit__(None, None, None)


def model_device(model: Module) -> torch.device:
    """The device of the model's first parameter or buffer; the CPU where it has none."""
    tensor = next(model.parameters(), next(model.buffers(), None))
    return torch.device("cpu") if tensor is None else tensor.device


def model_dtype(model: Module, input: Tensor) -> torch.dtype:
    """The dtype of the model's first floating-point parameter; the input's where it has none."""
    return next((tensor.dtype for tensor in model.parameters() if tensor.is_floating_point()), input.dtype)


@contextmanager
def _random_state(device: torch.device) -> Iterator[None]:
    sources: list[Any] = [(torch.get_rng_state, torch.set_rng_state)]
    if device.type not in ("cpu", "meta"):
        module = torch.get_device_module(device)
        sources.append((lambda: module.get_rng_state(device), lambda state: module.set_rng_state(state, device)))
    before = [get() for get, _ in sources]
    try:
        yield
    finally:
        for (get, put), state in zip(sources, before, strict=True):
            if not torch.equal(get(), state):
                put(state)


@contextmanager
def evaluating(model: Module) -> Iterator[None]:
    """Run ``model`` for a saliency call: in evaluation mode, eagerly, without gradients unless a probe asks.

    Put back afterwards, whatever happens inside: every module's own ``training`` flag, the global random state,
    the gradient, inference and autocast modes, the compiler's stance. Calls may overlap in time and across threads.

    >>> model = torch.nn.Dropout()
    >>> with evaluating(model):
    ...     model.training, torch.is_grad_enabled()
    (False, False)
    >>> model.training
    True
    """
    changes: dict[Hashable, Callable[[], Callable[[], Any]]] = {
        module: lambda module=module: _to_eval(module)  # type: ignore[misc]
        for module in model.modules()
    }
    if "torch._dynamo" in sys.modules:  # something may be compiled, and hooks do not fire in compiled code
        changes["eager"] = _to_eager
    device = model_device(model)
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        if torch.is_autocast_enabled(device.type):
            # Weights cast without gradients must not stay in the cache for the caller's own training step.
            dtype = torch.get_autocast_dtype(device.type)
            stack.enter_context(torch.autocast(device.type, dtype, cache_enabled=False))
        stack.enter_context(_random_state(device))
        stack.enter_context(_shared(changes))
        yield


def own_copy(tensor: Tensor) -> Tensor:
    """A copy that the model may overwrite: detached, and usable by autograd even if made in inference mode."""
    return tensor.detach().clone()
