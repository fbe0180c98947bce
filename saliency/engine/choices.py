"""Choices: rows that depend on where an operation stands, and on what is explained."""

from collections.abc import Callable, Sequence

from saliency.engine.operations import Operation, Row, Rule


class Attributing(Rule):
    """As :class:`Rule`, but what comes back is an attribution of the first tensor among the arguments.

    It is no gradient, and ends there: where that tensor is what is explained, it is the result.
    """


class Chosen(Row):
    """The row of the first choice that suits an operation, if there is one.

    A choice is a question to the operation, and a row: ``Chosen((lambda op: op.standing.first, a), (any_other, b))``.
    """

    def __init__(self, *choices: tuple[Callable[[Operation], bool], Row]) -> None:
        super().__init__(self.row)
        self.choices: Sequence[tuple[Callable[[Operation], bool], Row]]
        object.__setattr__(self, "choices", choices)

    def row(self, op: Operation) -> Row | None:
        """The row of an operation."""
        return next((row for suits, row in self.choices if suits(op)), None)
