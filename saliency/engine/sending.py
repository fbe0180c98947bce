"""Sending: run operations so that their gradient comes back by a rule of a table.

``y = keep_operation(force, Operation(torch.relu, (x,), {}), graph=True)`` runs y = relu(x) as one node of the graph.
When the backward pass reaches that node with dy, it looks up the row for relu in ``force.table``: with ``Pre(f)`` it
sends relu'(x) f(dy) on to x, and without a row plain relu'(x) dy. The table may be exchanged between two backward
passes.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.autograd.graph import GradientEdge, saved_tensors_hooks
from torch.nn import Parameter

from saliency.engine.choices import Attributing, Chosen
from saliency.engine.interrupts import interruptible, is_interrupted, uninterrupted
from saliency.engine.operations import Function, Gradients, Operation, Pre, Row, Rule, Through, memory_of

Args: TypeAlias = Sequence[object]
Kwargs: TypeAlias = Mapping[str, object]
Sought: TypeAlias = Tensor | GradientEdge  # where a gradient is wanted
_T = TypeVar("_T")


class Force:
    """The table in force, which the operations of a forward pass look up when their gradient comes back.

    It is all that they know of their context, which may itself refer to the graph that they belong to.
    """

    def __init__(self, table: Mapping[Function, Row]) -> None:
        self.table = table
        self.last = False  # is this the last backward pass? Then operations release their tensors on the way
        self.begun = False  # did an operation with weights run before the first site?
        self.unruled: dict[Function, Parameter] = {}  # operations that ran with weights but have no row
        self.ended: list[tuple[Operation, Tensor]] = []  # operations that ended in an attribution, and the attribution

    def row(self, op: Operation) -> Row | None:
        """The row of an operation, if there is one."""
        row = self.table.get(op.function)
        row = row if row is None or row.applies is None or row.applies(*op.args, **op.kwargs) else None
        return row.row(op) if isinstance(row, Chosen) else row


def _refuse_create_graph(function: Function) -> None:
    if torch.is_grad_enabled():
        raise RuntimeError(
            f"create_graph=True is not possible through {function.__name__} under a rule; expected a backward pass "
            "whose gradient is not differentiated again."
        )


def _writable(output: Tensor, inputs: Sequence[Tensor]) -> Tensor:
    """A node's result, which the model may overwrite: many operations return a view of a tensor of their own, which
    autograd would take for a view of an input.
    """
    if not output._is_view() or memory_of(output) in map(memory_of, inputs):
        return output
    return output.detach()


class _Node(FunctionCtx):
    """What a graph node keeps for the backward pass."""

    force: Force
    op: Operation
    function: Function
    row: Row
    saved_tensors: tuple[Tensor, ...]


class _Sent(torch.autograd.Function):
    """An operation whose input gradient depends only on its output gradient: nothing is kept."""

    @staticmethod
    def forward(ctx: _Node, function: Function, row: Row, args: Args, kwargs: Kwargs, input: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.function, ctx.row = function, row
        output: Tensor = function(input, *args[1:], **kwargs)
        if output is input:
            ctx.mark_dirty(input)
        return _writable(output, [input])

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
        return _writable(output, tensors)

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
            # Any other tensor, such as a slope, gets its own derivative.
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
    """ReLU, which keeps only its output, in place or not, and supports no :class:`Rule`."""

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
    """Like :func:`keep_operation`, for ReLU under its own name."""
    output: Tensor = _KeptReLU.apply(force, function, args, kwargs, args[0])
    return output


def send_through(function: Function, row: Row, args: Args, kwargs: Kwargs) -> Tensor:
    """Run an operation whose gradient comes back by a row of kind :class:`Through`."""
    output: Tensor = _Sent.apply(function, row, args, kwargs, args[0])
    return output


def keep_operation(force: Force, op: Operation, graph: bool, source: Operation | None = None) -> Tensor:
    """Run an operation that looks up its rule in ``force`` when the gradient comes back.

    If the operation overwrites the result of ``source``, that is computed again on demand instead of kept.
    """
    pairs = zip(op.tensors, op.parameters, strict=True)  # parameters are detached: their gradients are not needed
    tensors = [x.detach() if own else x for x, own in pairs]
    op.source = source
    output: Tensor = _Kept.apply(force, op, graph, *tensors)
    return output


def retry_with_copies(run: Callable[[bool], _T]) -> _T:
    """Return ``run(False)`` or, if the model overwrites what its backward pass needs, ``run(True)``.

    In the second run autograd keeps copies, so every pass has to happen inside. Running again costs nothing but time.
    """
    try:
        return run(False)
    except RuntimeError as error:
        if is_interrupted() or "modified by an inplace operation" not in str(error):
            raise
    with uninterrupted(), saved_tensors_hooks(_copy, lambda kept: kept):
        return run(True)


def overwrites_earlier_view(error: BaseException) -> bool:
    """Did the model write to a view that was made before gradients were switched on? Then they have to be on before."""
    return isinstance(error, RuntimeError) and "view was created in no_grad mode" in str(error)


def _copy(saved: Tensor) -> Tensor:
    with torch._C.DisableTorchFunction():  # not an operation of the model
        is_parameter = isinstance(saved, Parameter) or isinstance(saved._base, Parameter)
        return saved if is_parameter else saved.detach().clone()


def is_recorded(values: Sequence[object]) -> bool:
    """Will a backward pass come through here? Before the first probe none does."""
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
    """The gradients at the tensors for several roots together, each with its own incoming gradient.

    >>> x = torch.ones(1, requires_grad=True)
    >>> y = 2 * x
    >>> differentiate([(3 * y, torch.ones(1)), (y, torch.full((1,), -1.0))], [x], retain=False)
    [tensor([4.])]
    """
    outputs, gradients = zip(*roots, strict=True)
    with interruptible(), torch._C.DisableTorchFunction():  # every rule has been chosen by now
        found = torch.autograd.grad(outputs, tensors, gradients, retain_graph=retain, allow_unused=True)  # type: ignore[arg-type]
        return list(found)
