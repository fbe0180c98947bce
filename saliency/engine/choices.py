"""Choices: table rows that depend on the position of an operation in the network, and on what is explained."""

from collections.abc import Callable, Sequence

from saliency.engine.operations import Operation, Row, Rule


class Attributing(Rule):
    """Like :class:`Rule`, but what comes back is the attribution of the first tensor argument, not its gradient.

    It is not propagated further; if that tensor is the one that is explained, it is the result.
    """


class Chosen(Row):
    """The row of the first choice that suits an operation, if any.

    A choice is a predicate of the operation and a row: ``Chosen((lambda op: op.standing.first, a), (any_other, b))``.
    """

    def __init__(self, *choices: tuple[Callable[[Operation], bool], Row]) -> None:
        super().__init__(self.row)
        self.choices: Sequence[tuple[Callable[[Operation], bool], Row]]
        object.__setattr__(self, "choices", choices)

    def row(self, op: Operation) -> Row | None:
        """The row that suits an operation."""
        return next((row for suits, row in self.choices if suits(op)), None)
