"""State: what a call changes outside itself, and restores."""

import operator
import random
import sys
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from itertools import chain

import torch
from torch import Tensor
from torch.nn import Module, RNNBase
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from saliency.engine.attributes import Undo, hold_attributes, hold_tensor
from saliency.engine.interrupts import uninterrupted
from saliency.engine.nesting import own_call

# Overlapping calls have a change in common: the first makes it, the last undoes it. Entries do not outlive the calls.
_lock = threading.Lock()
_held: dict[Hashable, tuple[int, Undo]] = {}


@contextmanager
def _holding(modules: Iterable[Module], device: torch.device) -> Iterator[None]:
    """Make the changes of :func:`_changes`, until the last of the overlapping calls ends."""
    with ExitStack() as stack:
        with _lock:
            for key, change in _changes(tuple(modules), device):
                count, undo = _held[key] if key in _held else (0, change())
                _held[key] = (count + 1, undo)
                stack.callback(_release, key)  # one by one, so that a failure does not prevent the others
        yield


def _release(key: Hashable) -> None:
    with _lock:
        count, undo = _held.pop(key)
        if count > 1:
            _held[key] = (count - 1, undo)
        else:
            undo()


def _changes(modules: tuple[Module, ...], device: torch.device) -> Iterator[tuple[Hashable, Callable[[], Undo]]]:
    """Yield what this call has to change, each as a key and a function that makes the change and returns its undo.

    Most modules are in evaluation mode and have no state; batch norm does not change its own in that mode.
    """
    for module in modules:
        training = getattr(module, "training", False)  # torch.jit.freeze removes it
        if training or module in _held or (module._buffers and not isinstance(module, _BatchNorm)):
            yield module, partial(_hold, module)
    yield ("attributes", modules[:1]), partial(hold_attributes, modules)  # undone before the buffers are
    if "torch._dynamo" in sys.modules:  # something may be compiled, and hooks do not fire in compiled code
        yield "eager", _to_eager
    if parametrize._cache_enabled:
        yield "cache", _to_own_cache
    if device.type == "cuda" and any(isinstance(module, RNNBase) for module in modules):
        yield "cudnn", _without_cudnn


def _hold(module: Module) -> Undo:
    """Put one module into evaluation mode; return a function that restores its mode and buffers."""
    own = {} if isinstance(module, _BatchNorm) else module._buffers
    buffers = {name: buffer for name, buffer in own.items() if buffer is not None}
    undos = [hold_tensor(buffer) for buffer in buffers.values()]
    # Not module.eval(): networks override train() with side effects, and train() is not its inverse.
    training = getattr(module, "training", False)
    if training:
        module.training = False

    def undo() -> None:
        if training:
            module.training = True
        for name, buffer in buffers.items():
            module._buffers[name] = buffer
        for each in undos:
            each()

    return undo


def _to_eager() -> Undo:
    stance = torch.compiler.set_stance("force_eager")  # in all threads: PyTorch has one stance per process
    return lambda: stance.__exit__(None, None, None)


def _to_own_cache() -> Undo:
    """Inside ``parametrize.cached()``, keep what is computed here without gradients out of the caller's cache."""
    cache, parametrize._cache = parametrize._cache, {}
    return partial(setattr, parametrize, "_cache", cache)


def _without_cudnn() -> Undo:
    """cuDNN's recurrent layers have no backward pass in evaluation mode; PyTorch's own do."""
    before, torch.backends.cudnn.enabled = torch.backends.cudnn.enabled, False
    return partial(setattr, torch.backends.cudnn, "enabled", before)


def modules_of(model: Module) -> tuple[Module, ...]:
    """Every module of the model in the order of ``model.modules()``, which spends most of its time on names."""
    found: dict[Module, None] = {}
    stack: list[Module | None] = [model]
    while stack:
        module = stack.pop()
        if module is not None and module not in found:
            found[module] = None
            if children := module._modules:
                stack.extend(reversed(children.values()))
    return tuple(found)


def model_device(model: Module) -> torch.device:
    """The device of the model's first parameter or buffer; the CPU if it has none."""
    return next((tensor.device for tensor in chain(model.parameters(), model.buffers())), torch.device("cpu"))


def model_dtype(model: Module, input: Tensor) -> torch.dtype:
    """The dtype of the model's first floating-point parameter; the input's if it has none."""
    return next((tensor.dtype for tensor in model.parameters() if tensor.is_floating_point()), input.dtype)


def _generators(device: torch.device) -> Iterator[tuple[Callable[..., object], ...]]:
    """Functions that read, write and compare each global random state that a forward pass may draw from."""
    yield random.getstate, random.setstate, operator.eq
    yield torch.get_rng_state, torch.set_rng_state, torch.equal
    if numpy := sys.modules.get("numpy"):
        yield numpy.random.get_state, numpy.random.set_state, lambda a, b: a[2:] == b[2:] and bytes(a[1]) == bytes(b[1])
    if device.type not in ("cpu", "meta"):
        module = torch.get_device_module(device)
        yield partial(module.get_rng_state, device), lambda state: module.set_rng_state(state, device), torch.equal


@contextmanager
def random_state(device: torch.device) -> Iterator[None]:
    """Restore the random states afterwards, in the main thread only: other threads would undo its draws."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    states = [(get, put, same, get()) for get, put, same in _generators(device)]
    try:
        yield
    finally:
        for get, put, same, state in states:
            if not same(get(), state):  # leave states that this call did not touch: another thread may be drawing
                put(state)


@contextmanager
def evaluating(model: Module, modules: Iterable[Module] | None = None) -> Iterator[None]:
    """Run ``model`` for a saliency call: in evaluation mode, eagerly, without gradients unless a probe enables them.

    Restored afterwards, whatever happens inside, signals included: every module's ``training`` flag, buffers and tensor
    attributes, the random states, all modes, the compiler's stance. Calls may overlap in time and across threads; the
    compiler's stance and the random states belong to all threads, so the latter are restored by the main thread only.
    ``modules`` are those of the model, if known.

    >>> model = torch.nn.Dropout()
    >>> with evaluating(model):
    ...     model.training, torch.is_grad_enabled()
    (False, False)
    >>> model.training
    True
    """
    device, modules = model_device(model), modules_of(model) if modules is None else modules
    with (
        uninterrupted(),
        own_call(),
        torch.inference_mode(False),
        torch.no_grad(),
        _autocast_without_cache(device),
        random_state(device),
        _holding(modules, device),
    ):
        yield


def _autocast_without_cache(device: torch.device) -> AbstractContextManager[object]:
    """Weights cast without gradients must not remain in the cache for the caller's own training step."""
    dtype = autocast_dtype(device)
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype, cache_enabled=False)


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The dtype that operations on the device are cast to; ``None`` if autocast is off there."""
    casts = torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)
    return torch.get_autocast_dtype(device.type) if casts else None


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Run operations on the device without casting: autocast is off."""
    with uninterrupted(), torch.autocast(device.type, enabled=False) if autocast_dtype(device) else nullcontext():
        yield


def own_copy(tensor: Tensor) -> Tensor:
    """A copy that the model may overwrite: detached, and usable by autograd even if made in inference mode."""
    return tensor.detach().clone()


def on_device(tensor: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """The tensor on a device, which is not waited for; a copy to the CPU is, as it may be read at once.

    >>> on_device(torch.ones(1), torch.device("cpu"), torch.float64)
    tensor([1.], dtype=torch.float64)
    """
    return tensor.to(device, dtype, non_blocking=device.type != "cpu")


def rows_at(tensor: Tensor, index: Tensor) -> Tensor:
    """The rows of a tensor at an index, which is on the CPU and need not be waited for.

    >>> rows_at(torch.tensor([5, 6, 7]), torch.tensor([2, 0]))
    tensor([7, 5])
    """
    return tensor[on_device(index, tensor.device)]


def make_generator(device: torch.device, seed: int) -> torch.Generator | None:
    """A random generator of its own; ``None`` on the meta device, where nothing is drawn."""
    return None if device.type == "meta" else torch.Generator(device).manual_seed(int(seed))
