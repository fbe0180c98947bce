"""Contexts: how the backward pass runs. Rules replace single operations while their context is open."""

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from types import TracebackType
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from saliency.engine.attributes import version_of
from saliency.engine.checks import describe, shown
from saliency.engine.nesting import Opened, OwnMode, here
from saliency.engine.opening import COMPOSITE, HIDDEN, opened, seen_by
from saliency.engine.operations import (
    Function,
    Instead,
    Operation,
    Pre,
    Row,
    Table,
    Through,
    as_table,
    is_inplace,
    memory_of,
    relu_rules,
)
from saliency.engine.sending import Force, Sought, differentiate, is_recorded, keep_operation, send_through


@contextmanager
def outside_rules() -> Iterator[None]:
    """Run code that is not part of the model: no context of this thread sees its operations."""
    before, here.in_rule = here.in_rule, here.call
    try:
        yield
    finally:
        here.in_rule = before


class NullContext:
    """Change nothing: the plain backward pass."""

    def __enter__(self) -> "NullContext":
        return self

    def __exit__(self, *error: object) -> None:
        pass


def make_context(context_builder: object) -> AbstractContextManager[object]:
    """The context that a builder returns. Raises ``ValueError`` for a builder that does not return one."""
    context = context_builder() if callable(context_builder) else None
    if not isinstance(context, AbstractContextManager):
        made = f", but returns {describe(context)}" if callable(context_builder) else ""
        raise ValueError(
            f"context_builder={shown(context_builder)} is not a context class{made}; expected one, or a function "
            "that returns a context manager."
        )
    return context


def declared(context_builder: object, attribute: str, default: object) -> object:
    """An attribute of the context class behind a builder, or the default."""
    context = context_builder if isinstance(context_builder, type) else make_context(context_builder)
    return getattr(context, attribute, default)


class Patch:
    """Replace the callable at a dotted path, such as ``'torch.relu'``, until :meth:`remove` is called.

    A patch is seen by the whole process; contexts are local to the thread that opened them.

    >>> patch = Patch('torch.relu', torch.neg)
    >>> torch.relu(torch.tensor(2.0))
    tensor(-2.)
    >>> patch.remove()
    >>> torch.relu(torch.tensor(2.0))
    tensor(2.)
    """

    def __init__(self, target: str, new_callable: Callable[..., Any]) -> None:
        path, _, self.attribute = target.rpartition(".")
        self.target: object = _import(path) if path else None
        if not callable(getattr(self.target, self.attribute, None)):
            raise ValueError(f"target={shown(target)} is not the path of a callable; expected one, as 'torch.relu'.")
        self.orig_callable = getattr(self.target, self.attribute)
        setattr(self.target, self.attribute, new_callable)

    def remove(self) -> None:
        """Put the original callable back."""
        if self.target is not None:
            setattr(self.target, self.attribute, self.orig_callable)
        self.target = None


def _import(path: str) -> Any:
    """The module or attribute at a dotted path; ``None`` if it does not exist."""
    try:
        return importlib.import_module(path)
    except ImportError:
        parent, _, name = path.rpartition(".")
        return getattr(_import(parent), name, None) if parent else None


class Noted(NamedTuple):
    """An operation of the graph, and the nodes where it begins and ends."""

    op: Operation
    input: GradientEdge
    output: GradientEdge


class Conserved(NamedTuple):
    """Of what is sent in at the output, the fraction that arrives at a layer that all paths cross; and the warnings for
    a layer where less arrives, where the share is not between 0 and ``most``, and where nothing arrives.
    """

    least: float
    most: float
    lost: str
    outside: str
    nothing: str


class RuleContext(OwnMode):
    """Replace the backward pass of operations, or the operations: ``rules`` maps each torch function to a table row.

    ``Pre(f)`` sends f(gradient) through the operation's derivative; ``Through(f)`` sends back f(gradient) as it is;
    ``Rule(f)`` sends back f(op, gradient), with op an :class:`Operation`; ``Instead(f)``, or a bare f, runs
    ``f(function, *args, **kwargs)`` in place of the operation. The context sees modules, functional calls and tensor
    methods alike, in an unmodified model, and is local to the thread. If several open contexts have a row for an
    operation, the innermost one applies. Activation checkpointing recomputes operations during the backward pass,
    outside the context: switch it off.

    >>> with RuleContext({torch.relu: lambda function, x: function(x) + 1}):
    ...     torch.relu(torch.tensor([-1.0, 2.0]))
    tensor([1., 3.])
    """

    carries: ClassVar[str] = "gradient"  # or "relevance", "differences": what is propagated is not a derivative
    conserves: ClassVar[Conserved | None] = None
    completes: ClassVar[bool] = False  # do activations times what is sent back sum to the score?

    def __init__(self, rules: Table) -> None:
        super().__init__()
        self.rules: Mapping[Function, Row] = as_table(rules)
        self.force = Force(self.rules)
        self._opens = not HIDDEN.isdisjoint(self.rules)
        self.ran = 0  # how often a row was applied after the first site
        self.history: list[tuple[Function, Noted | None]] | None = None  # in the order in which they ran, if requested
        self._keeping: dict[int, list[Operation]] = {}  # by the memory of their arguments
        self._made: dict[int, tuple[Operation, int, torch.Size]] = {}  # by the memory of their results
        self._opened = Opened()

    @property
    def is_table(self) -> bool:
        """Does it only change the backward pass, so that its rules can be chosen when the gradient comes back?"""
        own = type(self).__torch_function__ is not RuleContext.__torch_function__
        return not own and not any(isinstance(row, Instead) for row in self.rules.values())

    def send_back(
        self, scores: Tensor, gradient: Tensor, tensors: Sequence[Sought], retain: bool
    ) -> list[Tensor | None]:
        """The gradients at the tensors under the rules in force, given the ``gradient`` of the ``scores``."""
        self.force.last = not retain
        return differentiate([(scores, gradient)], tensors, retain)

    def __torch_function__(
        self, func: Function, types: object, args: tuple[object, ...] = (), kwargs: dict[str, object] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._opens and func in COMPOSITE:
            with seen_by(self):
                return opened(func)(*args, **kwargs)
        if self._keeping and is_inplace(func, *args, **kwargs):
            self._keep_copies(kwargs.get("out", args[0] if args else kwargs.get("input")))
        row = self.rules.get(func)
        if (
            row is None
            or here.in_rule is here.call
            or self._opened.call not in (None, here.call)
            or not (row.applies is None or row.applies(*args, **kwargs))
        ):
            if row is None:
                self.pass_by(func, args)
            return func(*args, **kwargs)
        before, here.in_rule = here.in_rule, here.call
        try:
            return self._execute(row, func, args, kwargs)
        finally:
            here.in_rule = before

    def _execute(self, row: Row, function: Function, args: tuple[object, ...], kwargs: dict[str, object]) -> Any:
        if isinstance(row, Instead):
            self.ran += 1
            return row.function(function, *args, **kwargs)
        if not args and "input" in kwargs:
            args, kwargs = (kwargs["input"],), {name: value for name, value in kwargs.items() if name != "input"}
        if not is_recorded((*args, *kwargs.values())):
            self.note(function, None)
            return function(*args, **kwargs)
        self.ran += 1
        if args and isinstance(args[0], Tensor) and args[0]._is_view() and is_inplace(function, *args, **kwargs):
            # Autograd would rewrite the history of the viewed tensor, past the rule.
            return args[0].copy_(self._execute(row, function, (args[0].clone(), *args[1:]), kwargs))
        return self.run_recorded(row, function, args, kwargs)

    def run_recorded(self, row: Row, function: Function, args: tuple[object, ...], kwargs: dict[str, object]) -> Any:
        """Run an operation that the backward pass reaches; ``row`` is its row of the table, which does not change."""
        if isinstance(row, Pre):
            output: Tensor = function(*args, **kwargs)
            output.register_hook(row.hook)
            return output
        if isinstance(row, Through) and not is_recorded((*args[1:], *kwargs.values())):
            return send_through(function, row, args, kwargs)
        return self.keep(Operation(function, args, kwargs), graph=False)

    def keep(self, op: Operation, graph: bool) -> Tensor:
        """Run an operation and keep its arguments as they are now, even if the model overwrites them later."""
        input = op.tensors[0]
        made = self._made.get(memory_of(input)) if op.inplace else None
        source = made[0] if made is not None and made[1:] == (version_of(input), input.shape) else None
        output = keep_operation(self.force, op, graph, source)
        if graph and not op.inplace:
            self._made[memory_of(output)] = (op, version_of(output), output.shape)
        if self.history is not None:
            depends = input.requires_grad and output.requires_grad  # not if all arguments belong to the model
            self.note(op.function, Noted(op, *map(get_gradient_edge, (input, output))) if depends else None)
        for tensor, own in zip(op.tensors, op.parameters, strict=True):
            if not own:
                self._keeping.setdefault(memory_of(tensor), []).append(op)
        return output

    def pass_by(self, function: Function, args: tuple[object, ...]) -> None:
        """Called before an operation that has no row runs."""

    def note(self, function: Function, noted: "Noted | None") -> None:
        """Called after an operation that has a row has run; ``noted`` is ``None`` before the first site."""
        if self.history is not None:
            self.history.append((function, noted))

    def _keep_copies(self, overwritten: object) -> None:
        if isinstance(overwritten, Tensor):
            for op in self._keeping.pop(memory_of(overwritten), ()):
                op.keep_copies(overwritten)

    def __enter__(self) -> "RuleContext":
        self._opened.call = here.call  # a call nested inside, by a hook or a reduction, is left alone
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._keeping, self._made, self._opened.call = {}, {}, None
        super().__exit__(kind, error, trace)


def _replace_relu(
    relu_func: type[torch.autograd.Function], function: Function, input: Tensor, *args: object, **kwargs: object
) -> Tensor:
    if is_inplace(function, input, *args, **kwargs):
        return input.copy_(relu_func.apply(input.clone()))
    output: Tensor = relu_func.apply(input)
    return output


class ReLUContext(RuleContext):
    """Replace ReLU in all its spellings by ``relu_func``, a :class:`torch.autograd.Function` of one tensor."""

    def __init__(self, relu_func: type[torch.autograd.Function]) -> None:
        if not (isinstance(relu_func, type) and issubclass(relu_func, torch.autograd.Function)):
            raise ValueError(
                f"relu_func={shown(relu_func)} is not a subclass of torch.autograd.Function; expected one."
            )
        super().__init__(relu_rules(partial(_replace_relu, relu_func)))
        self.relu_func = relu_func
