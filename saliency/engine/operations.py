"""Operations: one operation that was run, and the table rows that say how its gradient comes back.

For y = relu(x) with gradient dy, ``Pre(f)`` sends back relu'(x) f(dy); ``Through(f)`` sends back f(dy); ``Rule(f)``
sends back f(op, dy), with ``op.tensors`` == [x]; and ``Instead(f)`` computes y = f(relu, x) in the first place.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._ops import OpOverload

from saliency.engine.arguments import places_in, put_tensors, tensor_at
from saliency.engine.attributes import version_of
from saliency.engine.standing import Ledger, Origin, Standing, owner_of

Function: TypeAlias = Callable[..., Any]  # a torch function, as a TorchFunctionMode sees it
Gradients: TypeAlias = Tensor | Sequence[Tensor | None] | None


def with_exported(*functions: Function) -> tuple[Function, ...]:
    """The functions, with the aten operators of the same names, of which programs made by ``torch.export`` consist.

    >>> torch.ops.aten.relu_.default in with_exported(torch.relu_)
    True
    """
    packets = [getattr(torch.ops.aten, name, None) for name in dict.fromkeys(f.__name__ for f in functions)]
    operators = [getattr(packet, name) for packet in packets if packet is not None for name in packet.overloads()]
    return *functions, *operators


# Activations other than ReLU that are used like it: a rule acts on their own derivative.
ACTIVATIONS = with_exported(
    *(F.relu6, F.hardtanh, F.hardtanh_, F.leaky_relu, F.leaky_relu_, F.rrelu, F.rrelu_, torch.rrelu, torch.rrelu_),
    *(F.prelu, torch.prelu, Tensor.prelu),
    *(F.elu, F.elu_, F.celu, torch.celu, torch.celu_, F.selu, torch.selu, torch.selu_),
    *(F.gelu, F.silu, F.hardswish, F.mish),
    *(torch.ops.aten.silu_.default, torch.ops.aten.hardswish_.default, torch.ops.aten.mish_.default),
)
RELUS = with_exported(F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_)
_CLAMPS = with_exported(
    *(torch.clamp, torch.clamp_, torch.clamp_min, torch.clamp_min_, torch.clip, torch.clip_),
    *(Tensor.clamp, Tensor.clamp_, Tensor.clamp_min, Tensor.clamp_min_, Tensor.clip, Tensor.clip_),
)
_THRESHOLDS = with_exported(F.threshold, torch.threshold, torch.threshold_)
_MAXIMA = with_exported(torch.maximum, torch.max, torch.fmax, Tensor.maximum, Tensor.max, Tensor.fmax)
_TAKE_INPLACE = frozenset((*RELUS, *_THRESHOLDS, *ACTIVATIONS, F.hardsigmoid))  # True may mean "in place"


@dataclass(frozen=True, eq=False)
class Row:
    """What a table does with an operation; ``applies`` restricts the row to calls with certain arguments."""

    function: Function
    applies: Callable[..., bool] | None = None


class Instead(Row):
    """``function(operation, *args, **kwargs)`` runs in place of the operation in the forward pass."""


class Pre(Row):
    """``function(gradient)`` is sent through the operation's own derivative."""

    def hook(self, gradient: Tensor | None) -> object:
        """The gradient to send, if there is one: a later operation may have stopped it."""
        return None if gradient is None else self.function(gradient)


class Through(Row):
    """``function(gradient)`` is sent back, whatever the operation does."""


class Rule(Row):
    """``function(op, gradient)`` is sent back, where ``op`` is an :class:`Operation`.

    It is the gradient of the first tensor argument, or a sequence with one for each; ``None`` stands for the
    operation's own derivative.
    """


Table: TypeAlias = Mapping[Function, Row | Function]


def as_row(rule: "Row | Function") -> Row:
    """A row, or an :class:`Instead` made of a bare callable."""
    return rule if isinstance(rule, Row) else Instead(rule)


def as_table(rules: Table) -> Mapping[Function, Row]:
    """The same table with every entry as a row."""
    rows = {function: rule for function, rule in rules.items() if isinstance(rule, Row)}
    same = cast("Mapping[Function, Row]", rules)
    return same if len(rows) == len(rules) else {function: as_row(rule) for function, rule in rules.items()}


def is_inplace(function: Function, *args: object, **kwargs: object) -> bool:
    """Does this call overwrite its first argument?

    >>> is_inplace(torch.relu_), is_inplace(F.relu, torch.ones(1), True), is_inplace(F.max_pool2d, torch.ones(1), 2)
    (True, True, False)
    """
    if isinstance(function, OpOverload):
        return kwargs.get("out") is not None or _overwrites(function)
    name = function.__name__
    if name.endswith("__"):
        return (name.startswith("__i") and name not in ("__index__", "__invert__", "__int__")) or name == "__setitem__"
    named = name.endswith("_") or bool(kwargs.get("inplace")) or kwargs.get("out") is not None
    return named or (function in _TAKE_INPLACE and any(argument is True for argument in args))


@cache
def _overwrites(operator: OpOverload) -> bool:
    first = operator._schema.arguments[:1]
    return any(argument.alias_info is not None and argument.alias_info.is_write for argument in first)


def _is_number(value: object, number: float) -> bool:
    return isinstance(value, (int, float)) and value == number


def _clamps_at_0(input: object, min: object = None, max: object = None, **kwargs: object) -> bool:  # noqa: A002 - torch's names
    return _is_number(min, 0) and (max is None or _is_number(max, math.inf))


def _has_threshold_0(input: object, threshold: object, value: object, *args: object, **kwargs: object) -> bool:
    return _is_number(threshold, 0) and _is_number(value, 0)


def _has_constant_0(input: object, other: object = None, *args: object, **kwargs: object) -> bool:
    # Reading a value on another device would wait for it.
    return isinstance(other, Tensor) and other.ndim == 0 and other.device.type == "cpu" and float(other.detach()) == 0


def relu_rules(rule: Row | Function) -> dict[Function, Row]:
    """A table that applies one rule to ReLU in all its spellings, in place or not."""
    row = as_row(rule)
    kind = type(row)
    return {
        **dict.fromkeys(RELUS, row),
        **dict.fromkeys(_CLAMPS, kind(row.function, _clamps_at_0)),
        **dict.fromkeys(_THRESHOLDS, kind(row.function, _has_threshold_0)),
        **dict.fromkeys(_MAXIMA, kind(row.function, _has_constant_0)),
    }


def activation_rules(rule: Row | Function) -> dict[Function, Row]:
    """A table that applies one rule to every activation function that gates its input."""
    return relu_rules(rule) | dict.fromkeys(ACTIVATIONS, as_row(rule))


class Operation:
    """One operation that was run, with its arguments as they were: what a :class:`Rule` is given.

    ``tensors`` are the tensor arguments in order, also from lists, detached; ``recorded`` says which of them receive a
    gradient, ``parameters`` which are parameters or views of one, and ``owner`` is the first such parameter.
    ``standing`` is known if the context traces its pass. Nothing here refers to the graph of the whole model.

    >>> op = Operation(torch.add, (torch.ones(1), torch.tensor([3.0])), {"alpha": 2})
    >>> op.run(torch.zeros(1), torch.ones(1)), op.argument(2, "alpha")
    (tensor([2.]), 2)
    """

    __slots__ = (
        *("_graph", "_versions", "args", "function", "inplace", "kwargs", "layer"),
        *("ledger", "owner", "parameters", "places", "recorded", "source", "standing"),
    )

    def __init__(self, function: Function, args: Sequence[object], kwargs: Mapping[str, object]) -> None:
        self.function, self.args, self.kwargs = function, list(args), dict(kwargs)
        self.source: Operation | None = None  # made the first tensor, and makes it again on demand
        self.places = [*places_in(enumerate(args)), *places_in(kwargs.items())]
        self.inplace = is_inplace(function, *args, **kwargs)
        owners = [owner_of(x) for x in self.tensors]
        self.owner = next((owner for owner in owners if owner is not None), None)
        self.parameters = [owner is not None for owner in owners]
        self.recorded = [x.requires_grad and not own for x, own in zip(self.tensors, self.parameters, strict=True)]
        self.standing = Standing([Origin(recorded) for recorded in self.recorded])
        self.ledger: Ledger | None = None
        self.layer = ""  # the name of the layer that its weights belong to
        self._graph: tuple[Tensor, list[Tensor], int] | None = None  # of this operation alone: result, leaves, version
        self._versions: list[int] = []

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors among the arguments."""
        kept = self._kept()
        return kept if self.source is None else [self.source.run(*self.source.tensors), *kept[1:]]

    def _kept(self) -> list[Tensor]:
        return [tensor_at(self.args, self.kwargs, place) for place in self.places]

    def argument(self, position: int, name: str, default: object = None) -> Any:
        """An argument, given by position or by name."""
        return self.args[position] if position < len(self.args) else self.kwargs.get(name, default)

    def run(self, *tensors: Tensor) -> Any:
        """Run the operation on other tensors, which it does not overwrite."""
        first, *others = tensors
        return self._call([first.clone() if self.inplace else first, *others])

    def _call(self, tensors: Sequence[Tensor]) -> Any:
        args, kwargs = list(self.args), dict(self.kwargs)
        put_tensors(args, kwargs, self.places, tensors)
        return self.function(*args, **kwargs)

    @property
    def result(self) -> Tensor:
        """The operation's result: the kept one, or computed again if it was not kept or has been overwritten."""
        graph = self._graph
        if graph is not None and version_of(graph[0]) == graph[2]:
            return graph[0].detach()
        made: Tensor = self.run(*self.tensors)
        return made

    def derivative(self, gradient: Tensor, of: Collection[int] | None = None) -> list[Tensor | None]:
        """The gradients that the operation itself sends back, one per tensor argument, or only for those with indices
        in ``of``.
        """
        output, leaves, _ = self._graph or self._make_graph()
        asked = [leaf.requires_grad and (of is None or i in of) for i, leaf in enumerate(leaves)]
        wanted = [leaf for leaf, is_asked in zip(leaves, asked, strict=True) if is_asked]
        found = iter(
            torch.autograd.grad(output, wanted, gradient, retain_graph=True, allow_unused=True) if wanted else ()
        )
        return [next(found) if is_asked else None for is_asked in asked]

    def _make_graph(self) -> tuple[Tensor, list[Tensor], int]:
        with torch.enable_grad():
            pairs = zip(self.tensors, self.recorded, strict=True)
            leaves = [tensor.detach().requires_grad_(recorded) for tensor, recorded in pairs]
            output: Tensor = self.run(*leaves)
            return output, leaves, version_of(output)

    def execute(self, tensors: Sequence[Tensor], graph: bool) -> Tensor:
        """Run the operation on its tensors and keep these, detached; with ``graph``, keep the graph of this operation
        too.
        """
        if graph and not self.inplace:
            self._replace([tensor.detach() for tensor in tensors])
            self._graph = self._make_graph()
            return self._graph[0].detach()
        first, *others = tensors
        kept = first.new_empty(0) if self.source is not None else first.clone() if self.inplace else first.detach()
        self._replace([kept, *(other.detach() for other in others)])
        output: Tensor = self._call(tensors)
        return output

    def release(self) -> None:
        """Release all tensors: no other gradient will come back here."""
        self._graph = self.source = None
        self._replace([torch.empty(0, device="cpu")] * len(self.places))

    def keep_copies(self, overwritten: Tensor) -> None:
        """Copy the kept tensors that share memory with a tensor about to be overwritten."""
        memory = memory_of(overwritten)
        kept, self.source, self._graph = self.tensors, None, None
        self._replace([tensor.clone() if memory_of(tensor) == memory else tensor for tensor in kept])

    def _replace(self, tensors: Sequence[Tensor]) -> None:
        put_tensors(self.args, self.kwargs, self.places, tensors)
        self._versions = [version_of(tensor) for tensor in tensors]

    def check_unchanged(self) -> None:
        """Raise ``RuntimeError`` if an argument has since been overwritten without the context's knowledge."""
        if self.source is not None:
            self.source.check_unchanged()
        if self._versions != [version_of(tensor) for tensor in self._kept()]:
            raise RuntimeError(f"an argument of {self.function.__name__} was overwritten after the forward pass.")


def memory_of(tensor: Tensor) -> int:
    """An identifier common to all tensors with the same memory."""
    return int(tensor.untyped_storage()._cdata)
