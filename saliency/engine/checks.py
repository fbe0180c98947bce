"""Checks of arguments, and the words of their errors."""

import math
import reprlib
from numbers import Integral, Real
from typing import TypeGuard

import torch
from torch import Tensor


def is_int(value: object) -> TypeGuard[int]:
    """Is this a whole number, of Python or NumPy?"""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[float]:
    """Is this a finite real number, of Python or NumPy?"""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def is_positive_int(value: object) -> TypeGuard[int]:
    return is_int(value) and int(value) > 0


def describe(value: object) -> str:
    """What a value is, in a few words, however large it is."""
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def check_tensor(argument: str, value: object) -> None:
    """Raise ``ValueError`` for what is not a tensor, as an array, a list or a text."""
    if not isinstance(value, Tensor):
        raise ValueError(f"{argument}={shown(value)} is not a tensor; expected a torch.Tensor.")


def shown(value: object) -> str:
    """A short value as it is written, of any other what it is."""
    short = value is None or isinstance(value, (str, Real))
    return reprlib.repr(value) if short else describe(value)


def printable(text: str) -> str:
    """The text with its control characters written out: names from a file must not move a terminal's cursor.

    >>> printable("a\x1b[2Jb")
    'a\\\\x1b[2Jb'
    """
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def one_line(error: BaseException) -> str:
    """What an error says, in one line that can be printed."""
    return printable(" ".join(str(error).split()))


def check_device(device: object) -> None:
    """Raise ``ValueError`` for a device that does not exist here."""
    try:
        torch.empty(0, device=device)  # type: ignore[call-overload]
    except (RuntimeError, AssertionError, TypeError, ValueError, NotImplementedError) as error:
        raise ValueError(f"device={shown(device)} is not available; expected a device of this machine.") from error


def check_seed(seed: object) -> None:
    """Raise ``ValueError`` for what seeds no generator."""
    if not is_int(seed) or not 0 <= seed < 2**63:
        raise ValueError(f"seed={seed!r} is not a seed; expected an int >= 0.")


def check_count(argument: str, value: object) -> None:
    """Raise ``ValueError`` for what is no positive number of things."""
    if not is_int(value) or value < 1:
        raise ValueError(f"{argument}={value!r} is not a positive number; expected an int >= 1.")
