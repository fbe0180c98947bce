"""Comparing: a pass whose operations know the results of an earlier pass, such as one at baselines."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from saliency.engine.call import Call
from saliency.engine.checks import shown
from saliency.engine.contexts import RuleContext
from saliency.engine.operations import Function, Operation, Row, Rule, Table
from saliency.engine.record import ContextBuilder, Pass, recording
from saliency.engine.sending import Sought
from saliency.engine.site import Site
from saliency.engine.state import model_device, random_state


class Compared(Operation):
    """An operation that knows its ``reference``: the same operation as the earlier pass ran it."""

    __slots__ = ("reference",)
    reference: Operation


class Multilinear(Rule):
    """A rule for an operation that is linear in each of its tensors; not needed if only one depends on the input."""


class ComparingContext(RuleContext):
    """Rules of :class:`Compared` operations, for a model that runs twice.

    The first pass keeps its operations. The second runs in a context that knows the ``earlier`` one, and finds the
    counterpart of each operation by the order in which they run: the third max pooling at the input is compared with
    the third operation kept at the baselines.
    """

    carries = "differences"

    def __init__(self, rules: Table, earlier: "ComparingContext | None" = None) -> None:
        super().__init__(rules)
        self._earlier = earlier
        self._operations: list[Operation] = []

    def run_recorded(self, row: Row, function: Function, args: tuple[object, ...], kwargs: dict[str, object]) -> Any:
        if not isinstance(row, Rule):
            return super().run_recorded(row, function, args, kwargs)
        if isinstance(row, Multilinear) and sum(map(_depends, (*args, *kwargs.values()))) < 2:
            return function(*args, **kwargs)
        op = Compared(function, args, kwargs)
        if self._earlier is not None:
            op.reference = self._earlier.same(len(self._operations), op)
        self._operations.append(op)
        return self.keep(op, graph=False)

    def same(self, number: int, op: Operation) -> Operation:
        """The earlier operation with this ``number``; ``ValueError`` if it is not the same operation."""
        found = self._operations[number : number + 1]
        if [_kind(each) for each in found] != [_kind(op)]:
            raise ValueError(
                f"baselines=those of this call make the model run other operations than the input, which ran "
                f"{op.function.__name__}; expected the same operations, of the same shapes, for both."
            )
        found[0].check_unchanged()
        return found[0]

    def send_back(
        self, scores: Tensor, gradient: Tensor, tensors: Sequence[Sought], retain: bool
    ) -> list[Tensor | None]:
        """Like any other context, if there is an earlier pass to compare with."""
        if self._earlier is None:
            raise without_reference(type(self))
        return super().send_back(scores, gradient, tensors, retain)


def _depends(value: object) -> bool:
    """May this value depend on the input?"""
    return isinstance(value, Tensor) and value.requires_grad and not isinstance(value, Parameter)


def _kind(op: Operation) -> tuple[object, ...]:
    return op.function, op.places, [x.shape for x in op.tensors]


def without_reference(context_builder: object) -> ValueError:
    """The error of a context that has nothing to compare with."""
    return ValueError(
        f"context_builder={shown(context_builder)} is not possible without baselines; expected a path of the "
        "input that begins at baselines, such as path=line(...)."
    )


@contextmanager
def compare(
    start: Call,
    end: Call,
    sites: Sequence[Site],
    context_builder: ContextBuilder,
    read: Callable[[object], object],
) -> Iterator[tuple[Pass, list[Tensor]]]:
    """Yield the pass at ``end``, whose operations know those at ``start``, and the tensors of the sites at ``start``.

    Random draws of the model are the same in both. ``read`` applies a target to the output: its operations are compared
    too.
    """
    with ExitStack() as stack:
        stack.enter_context(random_state(model_device(end.model)))
        stack.enter_context(torch.set_grad_enabled(torch.is_grad_enabled()))  # the sites switch gradients on
        first = stack.enter_context(recording(start, sites, context_builder))
        earlier, tensors = first.context, [x.detach() for at_site in first.tensors for x in at_site]
        read(first.output)
    del first  # its graph, which is not needed
    if not isinstance(earlier, ComparingContext):
        raise TypeError(f"{type(earlier).__name__} carries differences but is not a ComparingContext.")
    with recording(end, sites, lambda: ComparingContext(earlier.rules, earlier)) as recorded:
        yield recorded, tensors
