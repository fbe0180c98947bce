"""The front: the network up to a layer, which runs once; afterwards its operations are replayed without computing.

Recording notes every operation of a forward pass, with weak references to its results. When the layer is reached, only
the results that are still alive can be used by the rest of the network, the tail; those that it does use are kept as
they were at that moment. Replaying runs the model's own code again: each operation of the front returns the kept
result, expanded to the requested number of rows, or, if the tail never reads it, a shell of the right shape without
memory::

    def forward(self, x):           recorded                         replayed in 3 rows
        a = self.stem(x)            kept: the sum below uses it      the kept a (1, ...), expanded to (3, ...)
        b = a.relu()                released                         a shell of shape (3, ...)
        c = self.layer(b)           the layer is reached             its replacement, (3, ...)
        return self.head(a + c)     computed                         computed
"""

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from saliency.engine.nesting import OwnMode

_Function: TypeAlias = Callable[..., Any]
_Operation: TypeAlias = tuple[_Function, Any]  # a function, and its result with every tensor replaced by a Noted

# Never noted: they depend on the number of rows, or change the state of the thread.
_RUN_ANYWAY = frozenset(
    [
        *(getattr(Tensor, name).__get__ for name in ("shape", "ndim", "nbytes")),
        *(Tensor.size, Tensor.dim, Tensor.ndimension, Tensor.__len__, Tensor.numel, Tensor.nelement, torch.numel),
        torch._C._set_grad_enabled,
    ]
)


class DivergedError(Exception):
    """The model does not repeat the operations that were recorded."""


def _storage(tensor: Tensor) -> int:
    """An identifier common to all views of the same memory; valid as long as one of them is alive."""
    return tensor.untyped_storage()._cdata if tensor.layout is torch.strided else id(tensor)


def _is_plain(tensor: Tensor) -> bool:
    """Can a shell without memory stand in for this tensor?"""
    return tensor.layout is torch.strided and not (tensor.is_quantized or tensor.is_nested)


def _is_row(tensor: Tensor) -> bool:
    """Does this tensor belong to one sample? A vector of one float is a scale instead."""
    row = _is_plain(tensor) and tensor.ndim > 0 and tensor.shape[0] == 1
    return row and not (tensor.ndim == 1 and tensor.is_floating_point())


def _in_rows(tensor: Tensor, rows: int) -> Tensor:
    return tensor.expand(rows, *tensor.shape[1:]) if _is_row(tensor) else tensor


def _strided(content: Tensor, like: Tensor) -> Tensor:
    """The view of a storage's content with the geometry of ``like``."""
    return content.as_strided(like.shape, like.stride(), like.storage_offset())


class _Noted:
    """A tensor of the front: its value when the layer was reached, if the tail uses it, otherwise only its shape."""

    def __init__(self, tensor: Tensor) -> None:
        self._alive = weakref.ref(tensor)
        self._shape, self._dtype, self._device = tensor.shape, tensor.dtype, tensor.device
        self._shell = None if _is_plain(tensor) else tensor
        self._kept: Tensor | None = None
        self.identity = id(self)  # equal for all results that are the same tensor
        self._content: Tensor | None = None  # of the whole storage, if the tail overwrites it

    def release(self) -> None:
        self._kept = None

    def hold(self) -> list[Tensor]:
        """Keep the tensor alive from here on, if it still is."""
        self._kept = self._alive()
        self.identity = id(self if self._kept is None else self._kept)
        return [] if self._kept is None else [self._kept]

    def settle(self, uses: "_Uses") -> None:
        """Release a tensor that the tail did not use."""
        if self._kept is not None and _storage(self._kept) in uses.read:
            self._content = uses.overwritten.get(_storage(self._kept))
            self._kept = self._kept.detach()
        else:
            self._kept, self.identity = None, id(self)

    def in_rows(self, rows: int, buffers: dict[tuple[int, int], Tensor]) -> Tensor:
        """The tensor, or its shell, in every row. If the tail overwrites it, this is a view of a copy of its whole
        storage.

        Tensors with a common storage get a common copy, in ``buffers``: what is written to one is seen by the other.
        """
        x, content = self._kept, self._content
        if x is None:
            if self._shell is None:
                self._shell = torch.zeros((), dtype=self._dtype, device=self._device).expand(self._shape)
            return _in_rows(self._shell, rows)
        if content is None:
            return _in_rows(x.detach(), rows)
        shape, strides, key = (rows, *x.shape[1:]), (len(content), *x.stride()[1:]), (_storage(x), rows)
        if not _is_row(x):
            shape, strides, key = tuple(x.shape), x.stride(), (_storage(x), 1)
        if key not in buffers:
            buffers[key] = content.expand(key[1], -1).clone()
        return buffers[key].as_strided(shape, strides, x.storage_offset())


class _Uses(TorchDispatchMode):
    """Note which of the watched storages are used, and what they held before they are overwritten in any way."""

    supports_higher_order_operators = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # skipping would import the compiler first, which takes a second

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._watched: set[int] = set()
        self.read: set[int] = set()
        self.overwritten: dict[int, Tensor] = {}

    def watch(self, tensors: Sequence[Tensor]) -> None:
        """Watch the storages of these tensors and forget all others."""
        self._watched, self.read, self.overwritten = set(map(_storage, tensors)), set(), {}

    def see(self, values: object) -> list[Tensor]:
        """Note the use of all tensors in ``values``; return those that are watched."""
        tensors = [x for x in tree_leaves(values) if isinstance(x, Tensor) and _storage(x) in self._watched]
        self.read.update(map(_storage, tensors))
        return tensors

    def __torch_dispatch__(
        self, func: _Function, types: object, args: tuple[object, ...] = (), kwargs: Mapping[str, object] | None = None
    ) -> Any:
        if self._watched and self.see((args, kwargs)):
            arguments = func._schema.arguments if hasattr(func, "_schema") else ()
            given = {**dict(zip((argument.name for argument in arguments), args, strict=False)), **(kwargs or {})}
            for argument in arguments:
                if argument.alias_info is not None and argument.alias_info.is_write:
                    self._save(given.get(argument.name))
        return func(*args, **(kwargs or {}))

    def _save(self, values: object) -> None:
        for x in self.see(values):
            if _storage(x) not in self.overwritten:
                with torch._C.DisableTorchFunction():
                    size = x.untyped_storage().nbytes() // x.element_size()
                    self.overwritten[_storage(x)] = x.as_strided((size,), (1,), 0).clone()


class Recording(OwnMode):
    """Note the operations of a forward pass. Open ``recording.uses`` and this around the model, innermost.

    Call the model with ``given``, and :meth:`mark` when the layer is reached.
    """

    def __init__(self, given: object) -> None:
        super().__init__()
        self.uses = _Uses()
        self._given = tree_map_only(Tensor, _Noted, given)
        self._operations: list[_Operation] = []
        self._length = 0

    def __torch_function__(
        self, func: _Function, types: object, args: tuple[object, ...] = (), kwargs: Mapping[str, object] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func not in _RUN_ANYWAY:
            with torch._C.DisableTorchFunction():
                noted = _Noted(result) if isinstance(result, Tensor) else tree_map_only(Tensor, _Noted, result)
                self._operations.append((func, noted))
        return result

    def mark(self, at_layer: Sequence[Tensor]) -> None:
        """End the front here, at these tensors; if the layer is called again, end it there instead."""
        self._length = len(self._operations)
        noted = self._noted()
        for each in noted:
            each.release()
        self.uses.watch([*at_layer, *(x for each in noted for x in each.hold())])

    def is_overwritten(self, tensor: Tensor) -> bool:
        """Did the tail write to a tensor that existed when the layer was reached?"""
        return _storage(tensor) in self.uses.overwritten

    def as_marked(self, tensor: Tensor) -> Tensor:
        """The value of such a tensor when the layer was reached."""
        return _strided(self.uses.overwritten[_storage(tensor)], tensor) if self.is_overwritten(tensor) else tensor

    def settle(self, output: object) -> "Front":
        """The front, once the model has returned ``output``."""
        self.uses.see(output)
        for noted in self._noted():
            noted.settle(self.uses)
        return Front(self._given, self._operations[: self._length])

    def _noted(self) -> list[_Noted]:
        leaves = tree_leaves((self._given, [result for _, result in self._operations[: self._length]]))
        return [leaf for leaf in leaves if isinstance(leaf, _Noted)]


class Front:
    """A recorded front: what the model was given, and its operations up to the layer."""

    def __init__(self, given: object, operations: Sequence[_Operation]) -> None:
        self.given, self.operations = given, operations

    def replay(self, rows: int) -> "Replay":
        """A mode in which the model repeats the front in this many rows."""
        return Replay(self, rows)


class Replay(OwnMode):
    """Operations of the front return what was kept. Raises :class:`DivergedError` for any other operation.

    Call the model with ``given``, and :meth:`finish` when the layer is reached.
    """

    def __init__(self, front: Front, rows: int) -> None:
        super().__init__()
        self._rows = rows
        self._left: Iterator[_Operation] = iter(front.operations)
        self._in_front = True
        self._handed: dict[int, Tensor] = {}
        self._buffers: dict[tuple[int, int], Tensor] = {}
        self.given = tree_map_only(_Noted, self._hand_out, front.given)

    def __torch_function__(
        self, func: _Function, types: object, args: tuple[object, ...] = (), kwargs: Mapping[str, object] | None = None
    ) -> Any:
        if not self._in_front or func in _RUN_ANYWAY:
            return func(*args, **(kwargs or {}))
        known, result = next(self._left, (None, None))
        if known != func:
            raise DivergedError(f"{known} was recorded, not {func}")
        # The fast way for most results: this is all that replaying costs.
        return self._hand_out(result) if isinstance(result, _Noted) else tree_map_only(_Noted, self._hand_out, result)

    def finish(self) -> None:
        """From here on, operations are computed."""
        if next(self._left, None) is not None:
            raise DivergedError("the layer is reached too early")
        self._in_front = False

    def _hand_out(self, noted: _Noted) -> Tensor:
        """One tensor for all results that were the same one, so that a write to it is seen everywhere."""
        if noted.identity not in self._handed:
            with torch._C.DisableTorchFunction(), torch.enable_grad():  # else a view could not be written to
                self._handed[noted.identity] = noted.in_rows(self._rows, self._buffers)
        return self._handed[noted.identity]
