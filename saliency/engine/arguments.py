"""Arguments: locate the tensors among the arguments of a function."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from torch import Tensor

Place: TypeAlias = tuple[int | str, int | None]  # the argument, and the index if it is a list


def places_in(arguments: Iterable[tuple[int | str, object]]) -> Iterator[Place]:
    """Yield the place of every tensor among the arguments, including those inside lists.

    >>> import torch
    >>> list(places_in(enumerate([torch.ones(1), [2, torch.ones(1)]])))
    [(0, None), (1, 1)]
    """
    for at, value in arguments:
        if isinstance(value, Tensor):
            yield at, None
        elif isinstance(value, (list, tuple)):
            yield from ((at, i) for i, x in enumerate(value) if isinstance(x, Tensor))


def tensor_at(args: Sequence[object], kwargs: Mapping[str, object], place: Place) -> Any:
    """Return the tensor at a place; for a place in a list, that element."""
    at, i = place
    value: Any = args[at] if isinstance(at, int) else kwargs[at]
    return value if i is None else value[i]


def put_tensors(
    args: list[object], kwargs: dict[str, object], places: Sequence[Place], tensors: Sequence[Tensor]
) -> None:
    """Put each tensor at its place."""
    for (at, i), tensor in zip(places, tensors, strict=True):
        value: Any = tensor
        if i is not None:
            value = list(tensor_at(args, kwargs, (at, None)))
            value[i] = tensor
        if isinstance(at, int):
            args[at] = value
        else:
            kwargs[at] = value
