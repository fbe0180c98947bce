"""Standing: what a pass knows of an operation besides its arguments, and the relevance that it does not send on."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor
from torch.nn import Parameter


class Origin(NamedTuple):
    """What is known of a tensor argument: does it depend on what is explained, can it be negative, is it a gate?

    ``gate`` is the name of the function, such as ``'sigmoid'``, whose result weights other tensors; it is kept when
    that result is reshaped or weighted itself.
    """

    depends: bool
    nonnegative: bool = False
    gate: str = ""


class Standing(NamedTuple):
    """Where an operation stands in a pass: the origins of its tensors and, if it has weights, its position.

    ``first`` and ``last`` mark the operations with weights next to the model's input and to the score. ``norm`` is the
    scale and shift per channel of a batch norm that is the only reader of the operation's result.
    """

    origins: Sequence[Origin]
    first: bool = False
    last: bool = False
    norm: tuple[Tensor, Tensor] | None = None


class Ledger:
    """The total relevance that operations receive but do not send on.

    ``bias`` went to constants: biases, class tokens, positions. ``lost`` is due to units whose denominator is 0, or was
    moved away from 0. The relevance of the input, ``bias`` and ``lost`` add up to the score.
    """

    def __init__(self) -> None:
        self.bias, self.lost = 0.0, 0.0

    def add(self, bias: Tensor | None = None, lost: Tensor | None = None) -> None:
        """Add relevance, summed over its elements."""
        self.bias += 0 if bias is None else float(bias.sum())
        self.lost += 0 if lost is None else float(lost.sum())


def owner_of(x: Tensor) -> Parameter | None:
    """The parameter that a tensor is, or is a view of."""
    return x if isinstance(x, Parameter) else x._base if isinstance(x._base, Parameter) else None
