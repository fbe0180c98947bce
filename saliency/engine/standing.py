"""Standing: what a pass says of an operation besides its arguments, and what the operation does not send on."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor
from torch.nn import Parameter


class Origin(NamedTuple):
    """Of one of an operation's tensors: does it depend on what is explained, can it be negative, what gates by it?

    ``gate`` is the name of the function that made it, such as ``'sigmoid'``, where it is one whose results weigh
    others; reshaped, or weighed itself, it still is.
    """

    depends: bool
    nonnegative: bool = False
    gate: str = ""


class Standing(NamedTuple):
    """Where an operation stands in a pass: the origins of its tensors, and, of one with weights, its position.

    ``first`` and ``last`` are those with weights that stand between the model's input and the score. ``norm`` are scale
    and shift, by channel, of a batch norm that is the only reader of the operation's result.
    """

    origins: Sequence[Origin]
    first: bool = False
    last: bool = False
    norm: tuple[Tensor, Tensor] | None = None


class Ledger:
    """What operations do not send on of the relevance that comes to them, in all.

    ``bias`` went to constants: biases, class tokens, positions. ``lost`` was due to units whose denominator is 0, or is
    kept away from it.
    """

    def __init__(self) -> None:
        self.bias, self.lost = 0.0, 0.0

    def add(self, bias: Tensor | None = None, lost: Tensor | None = None) -> None:
        """Enter relevance, element by element."""
        self.bias += 0 if bias is None else float(bias.sum())
        self.lost += 0 if lost is None else float(lost.sum())


def owner_of(x: Tensor) -> Parameter | None:
    """The parameter that a tensor is, or is a view of."""
    return x if isinstance(x, Parameter) else x._base if isinstance(x._base, Parameter) else None
