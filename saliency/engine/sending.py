"""Sending gradients back: operations whose gradient comes back by a rule of a table."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.autograd.graph import GradientEdge, saved_tensors_hooks
from torch.nn import Parameter

from saliency.engine.choices import Attributing, Chosen
from saliency.engine.interrupts import interruptible, is_interrupted, uninterrupted
from saliency.engine.operations import Function, Gradients, Operation, Pre, Row, Rule, Through

Args: TypeAlias = Sequence[object]
Kwargs: TypeAlias = Mapping[str, object]
Sought: TypeAlias = Tensor | GradientEdge  # where a gradient is asked for
_T = TypeVar("_T")


class Force:
    """The table in force: what the operations of a forward pass ask when their gradient comes back.

    It is all that they know of their context, which may hold tensors of the graph that they are part of.
    """

    def __init__(self, table: Mapping[Function, Row]) -> None:
        self.table = table
        self.last = False  # is this the last backward pass? Then what operations keep is let go as it comes back
        self.begun = False  # did an operation with weights run in front of the first site?
        self.unruled: dict[Function, Parameter] = {}  # what ran that has weights and no row
        self.ended: list[tuple[Operation, Tensor]] = []  # where an attribution came back, and which

    def row(self, op: Operation) -> Row | None:
        """The row of an operation."""
        row = self.table.get(op.function)
        row = row if row is None or row.applies is None or row.applies(*op.args, **op.kwargs) else None
        return row.row(op) if isinstance(row, Chosen) else row


def _refuse_create_graph(function: Function) -> None:
    if torch.is_grad_enabled():
        raise RuntimeError(
            f"create_graph=True is not possible through {function.__name__} under a rule; expected a backward pass "
            "whose gradient is not differentiated again."
        )


class _Node(FunctionCtx):
    """What a node of the graph remembers."""

    force: Force
    op: Operation
    function: Function
    row: Row
    saved_tensors: tuple[Tensor, ...]


class _Sent(torch.autograd.Function):
    """An operation whose gradient is made of the output's gradient alone: nothing is kept."""

    @staticmethod
    def forward(ctx: _Node, function: Function, row: Row, args: Args, kwargs: Kwargs, input: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.function, ctx.row = function, row
        output: Tensor = function(input, *args[1:], **kwargs)
        if output is input:
            ctx.mark_dirty(input)
        return output

    @staticmethod
    def backward(ctx: _Node, gradient: Tensor | None) -> tuple[Tensor | None, ...]:
        _refuse_create_graph(ctx.function)
        return None, None, None, None, None if gradient is None else ctx.row.function(gradient)


class _Kept(torch.autograd.Function):
    """An operation that keeps its arguments, and looks up its rule when the gradient comes back."""

    @staticmethod
    def forward(ctx: _Node, force: Force, op: Operation, graph: bool, *tensors: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.force, ctx.op = force, op
        output = op.execute(tensors, graph)
        if op.inplace:
            ctx.mark_dirty(output)
        return output

    @staticmethod
    def backward(ctx: _Node, gradient: Tensor | None) -> tuple[Tensor | None, ...]:
        op = ctx.op
        _refuse_create_graph(op.function)
        if gradient is None:
            return (None,) * (3 + len(op.places))
        op.check_unchanged()
        row = ctx.force.row(op)
        found: Gradients = None
        if isinstance(row, Rule):
            found = row.function(op, gradient)
        elif isinstance(row, Through):
            sent: Tensor = row.function(gradient)
            # Another tensor, such as a slope, gets its own derivative.
            found = [sent, *op.derivative(gradient)[1:]] if any(op.recorded[1:]) else sent
        if isinstance(row, Attributing) and isinstance(found, Tensor):
            ctx.force.ended.append((op, found))
            found = [None] * len(op.places)
        if found is None:
            found = op.derivative(row.function(gradient) if isinstance(row, Pre) else gradient)
        others = len(op.places) - 1
        if ctx.force.last:
            op.release()
        return None, None, None, *([found, *[None] * others] if isinstance(found, Tensor) else found)


class _KeptReLU(torch.autograd.Function):
    """ReLU keeps no more than its output, in place or not, and knows no :class:`Rule`."""

    @staticmethod
    def forward(
        ctx: _Node,
        force: Force,
        function: Function,
        args: Sequence[object],
        kwargs: Mapping[str, object],
        input: Tensor,
    ) -> Tensor:
        output: Tensor = function(input, *args[1:], **kwargs)
        ctx.set_materialize_grads(False)
        ctx.force, ctx.function = force, function
        ctx.save_for_backward(output)
        if output is input:
            ctx.mark_dirty(output)
        return output

    @staticmethod
    def backward(ctx: _Node, gradient: Tensor | None) -> tuple[Tensor | None, ...]:
        _refuse_create_graph(ctx.function)
        if gradient is None:
            return (None,) * 5
        row = ctx.force.table.get(ctx.function)
        gradient = gradient if row is None else row.function(gradient)
        if not isinstance(row, Through):
            gradient = torch.ops.aten.threshold_backward(gradient, ctx.saved_tensors[0], 0)
        return None, None, None, None, gradient


def keep_relu(force: Force, function: Function, args: Args, kwargs: Kwargs) -> Tensor:
    """As :func:`keep_operation`, for ReLU by its own name."""
    output: Tensor = _KeptReLU.apply(force, function, args, kwargs, args[0])
    return output


def send_through(function: Function, row: Row, args: Args, kwargs: Kwargs) -> Tensor:
    """Run an operation that sends back what a row of kind :class:`Through` makes of the gradient."""
    output: Tensor = _Sent.apply(function, row, args, kwargs, args[0])
    return output


def keep_operation(force: Force, op: Operation, graph: bool, source: Operation | None = None) -> Tensor:
    """Run an operation whose rule is looked up in ``force`` when the gradient comes back.

    What a ``source`` has made, and the operation overwrites, is made again when it is asked for, not kept.
    """
    pairs = zip(op.tensors, op.parameters, strict=True)  # without a parameter's gradient, which nobody asks for
    tensors = [x.detach() if own else x for x, own in pairs]
    op.source = source
    output: Tensor = _Kept.apply(force, op, graph, *tensors)
    return output


def keeping_copies(run: Callable[[bool], _T]) -> _T:
    """What ``run(False)`` gives; where the model overwrites what its own backward pass needs, what ``run(True)`` does.

    Then autograd keeps copies, and all passes have to run inside. Nothing else is lost by running again.
    """
    try:
        return run(False)
    except RuntimeError as error:
        if is_interrupted() or "modified by an inplace operation" not in str(error):
            raise
    with uninterrupted(), saved_tensors_hooks(_copy, lambda kept: kept):
        return run(True)


def _copy(saved: Tensor) -> Tensor:
    with torch._C.DisableTorchFunction():  # it is no operation of the model
        is_parameter = isinstance(saved, Parameter) or isinstance(saved._base, Parameter)
        return saved if is_parameter else saved.detach().clone()


def is_recorded(values: Sequence[object]) -> bool:
    """Will a backward pass come through here? In front of the first probe there is none."""
    return torch.is_grad_enabled() and any(
        x.requires_grad and not isinstance(x, Parameter)
        if isinstance(x, Tensor)
        else isinstance(x, (list, tuple)) and is_recorded(x)
        for x in values
    )


def differentiate(
    roots: Sequence[tuple[Tensor | GradientEdge, Tensor]],
    tensors: Sequence[Sought],
    retain: bool,
) -> list[Tensor | None]:
    """The gradients at the tensors of several roots together, each with the gradient that is sent into it.

    >>> x = torch.ones(1, requires_grad=True)
    >>> y = 2 * x
    >>> differentiate([(3 * y, torch.ones(1)), (y, torch.full((1,), -1.0))], [x], retain=False)
    [tensor([4.])]
    """
    outputs, gradients = zip(*roots, strict=True)
    with interruptible(), torch._C.DisableTorchFunction():  # each rule has been chosen
        found = torch.autograd.grad(outputs, tensors, gradients, retain_graph=retain, allow_unused=True)  # type: ignore[arg-type]
        return list(found)
