"""Attributes: tensors that modules keep besides their parameters, and that a forward pass may change.

Weight norm, spectral norm and pruning in the old style keep a layer's weight there, recurrent networks their state, and
others a cache.
"""

from collections.abc import Callable, Sequence
from operator import is_
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils._pytree import tree_leaves

Undo: TypeAlias = Callable[[], None]
_Container: TypeAlias = list[Any] | dict[Any, Any]

_STANDARD = frozenset(vars(Module()))  # what every module has
_MISSING = object()


def hold_attributes(modules: Sequence[Module]) -> Undo:
    """Remember the tensors among the modules' attributes, also in lists, tuples and dicts; return a function that
    restores them.
    """
    states = []
    containers: list[tuple[_Container, _Container]] = []
    tensors: list[Undo] = []
    layers = {kind: kind.__module__.startswith("torch.nn.") for kind in set(map(type, modules))}
    for module in modules:
        is_layer = layers[type(module)]
        if is_layer and not module._forward_pre_hooks:  # PyTorch's own layers keep nothing, but their hooks may
            continue
        own = module.__dict__
        states.append((own, own.copy()))
        for name in own.keys() - _STANDARD:
            value = own[name]
            if isinstance(value, (list, dict)):
                containers.append((value, value.copy()))
            elif isinstance(value, Tensor) and not is_layer:  # a layer's hook makes a new tensor each time
                tensors.append(hold_tensor(value))

    def put_back() -> None:
        for own, before in states:
            if not _is_same(own, before):
                _put_back(own, before)
        for container, contents in containers:
            if not _is_same(container, contents) and _holds_tensor((container, contents)):
                _refill(container, contents)
        for undo in tensors:
            undo()

    return put_back


def hold_tensor(tensor: Tensor) -> Undo:
    """Remember the values of a tensor; return a function that writes them back into the same tensor."""
    copy, was_leaf = tensor.detach().clone(), tensor.grad_fn is None

    def undo() -> None:
        if tensor.grad_fn is not None and was_leaf:
            tensor.detach_()  # the model has written a tensor with a gradient into it
        if tensor.shape != copy.shape:
            tensor.data = copy
        elif tensor.device.type != "cpu" or not torch.equal(tensor, copy):  # a GPU would have to be waited for
            tensor.data.copy_(copy)

    return undo


def _is_same(a: _Container, b: _Container) -> bool:
    """Do two lists or dicts hold the same objects? Kept fast: hundreds are compared in each call."""
    if len(a) != len(b) or not all(map(is_, a, b)):
        return False
    return isinstance(a, list) or isinstance(b, list) or all(map(is_, a.values(), b.values()))


def _put_back(own: dict[str, object], before: dict[str, object]) -> None:
    for name in own.keys() - _STANDARD - before.keys():
        if _holds_tensor(own[name]):
            del own[name]
    for name in before.keys() - _STANDARD:
        found = own.get(name, _MISSING)
        if found is not before[name] and _holds_tensor((found, before[name])):
            own[name] = before[name]


def _refill(container: _Container, contents: _Container) -> None:
    container.clear()
    if isinstance(container, dict):
        container.update(contents)
    else:
        container.extend(contents)


def _holds_tensor(value: object) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in tree_leaves(value))
