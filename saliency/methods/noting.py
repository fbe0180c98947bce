"""Noting: a backward pass that changes nothing and records the operations that it passes."""

from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar

from torch import Tensor

from saliency.engine.contexts import RuleContext
from saliency.engine.operations import Function, Operation, Rule
from saliency.engine.sending import Sought

T = TypeVar("T")


class _Listener(Generic[T]):
    """What records: it does not know its context, which may hold tensors of the graph."""

    def __init__(self, make: Callable[[Operation, Tensor], T | None], noted: list[T]) -> None:
        self.make, self.noted, self.listens = make, noted, True

    def __call__(self, op: Operation, gradient: Tensor) -> None:
        note = self.make(op, gradient) if self.listens else None
        if note is not None:
            self.noted.append(note)


class NotingContext(RuleContext, Generic[T]):
    """The plain gradient. ``noted`` collects ``make(op, gradient)`` for the operations between the score and the layer.

    Those closest to the score come first. Notes of an earlier target are dropped, and ``None`` is not kept.
    """

    def __init__(
        self, functions: Iterable[Function], make: Callable[[Operation, Tensor], T | None], noted: list[T]
    ) -> None:
        self.noted, self._listener = noted, _Listener(make, noted)
        super().__init__(dict.fromkeys(functions, Rule(self._listener)))

    def send_back(
        self, scores: Tensor, gradient: Tensor, tensors: Sequence[Sought], retain: bool
    ) -> list[Tensor | None]:
        """The gradient of the layer, the first of the tensors, followed by those of probes in front of it."""
        self.noted.clear()
        self._listener.listens = True
        found = super().send_back(scores, gradient, tensors[:1], retain or len(tensors) > 1)
        self._listener.listens = False
        return found + (super().send_back(scores, gradient, tensors[1:], retain) if len(tensors) > 1 else [])
