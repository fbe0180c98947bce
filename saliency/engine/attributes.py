"""Attributes: tensors that modules keep besides their parameters, and that a forward pass may change.

Weight norm, spectral norm and pruning in the old style keep a layer's weight there, recurrent networks their state, and
others a cache, with the size or the count that it belongs to.
"""

from collections.abc import Callable, Sequence
from operator import is_
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils._pytree import tree_leaves

Undo: TypeAlias = Callable[[], None]
_State: TypeAlias = dict[str, Any]
_Container: TypeAlias = list[Any] | dict[Any, Any]
_Contents: TypeAlias = tuple[_Container, _Container]  # a container, and what it held

_STANDARD = frozenset(vars(Module()))  # what every module has


def hold_attributes(modules: Sequence[Module]) -> Undo:
    """Remember the modules' attributes; return a function that restores the tensors among them, also in lists, tuples
    and dicts, and with them whatever else has changed in the same module, such as the size that a cache was made for.
    """
    states: list[tuple[_State, _State, list[_Contents], list[tuple[Tensor, int]]]] = []
    tensors: list[Undo] = []
    layers = {kind: kind.__module__.startswith("torch.nn.") for kind in set(map(type, modules))}
    for module in modules:
        is_layer = layers[type(module)]
        if is_layer and not module._forward_pre_hooks:  # PyTorch's own layers keep nothing, but their hooks may
            continue
        own = module.__dict__
        buffers, attributes = own.get("_buffers") or {}, [own[name] for name in own.keys() - _STANDARD]
        contents = [(x, x.copy()) for x in (buffers, *attributes) if isinstance(x, (list, dict))]
        written = [] if is_layer else [x for x in attributes if isinstance(x, Tensor)]  # a layer's hook makes new ones
        tensors += map(hold_tensor, written)
        versions = [(x, version_of(x)) for x in (*written, *buffers.values()) if x is not None]
        states.append((own, own.copy(), contents, versions))

    def put_back() -> None:
        for own, before, contents, versions in states:
            changed = [each for each in contents if not _is_same(*each)]
            written = any(version_of(x) != version for x, version in versions)
            if written or _holds_tensor([*changed, *_changed(own, before)]):
                for container, values in changed:
                    _refill(container, values)
                _put_back(own, before)
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


def version_of(tensor: Tensor) -> int:
    """How often a tensor was overwritten; tensors made in inference mode have no version."""
    return 0 if tensor.is_inference() else tensor._version


def _changed(own: _State, before: _State) -> list[object]:
    if _is_same(own, before):
        return []
    names = (own.keys() | before.keys()) - _STANDARD
    pairs = [(own.get(name), before.get(name)) for name in names]
    return [(now, then) for now, then in pairs if now is not then]


def _put_back(own: _State, before: _State) -> None:
    for name in own.keys() - _STANDARD - before.keys():
        del own[name]
    own.update((name, before[name]) for name in before.keys() - _STANDARD)


def _refill(container: _Container, contents: _Container) -> None:
    """Give a list or dict its contents again, without emptying it: another thread may be reading."""
    if isinstance(container, dict) and isinstance(contents, dict):
        for key in [key for key in container if key not in contents]:
            del container[key]
        container.update(contents)
    else:
        container[:] = contents


def _holds_tensor(values: list[object]) -> bool:
    return bool(values) and any(isinstance(leaf, Tensor) for leaf in tree_leaves(values))
