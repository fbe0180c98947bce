"""Checks of arguments, and the words of their errors."""

import math
import os
import reprlib
from numbers import Integral, Real
from pathlib import Path
from typing import TypeGuard

import torch
from torch import Tensor
from torch.nn import Module

LARGEST = 2**31  # a count or a side beyond is that of nothing


def is_int(value: object) -> TypeGuard[int]:
    """Is this a whole number, of Python or NumPy?"""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[float]:
    """Is this a finite real number, of Python or NumPy?"""
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an int of more than 308 digits
        return False


def is_positive_int(value: object) -> TypeGuard[int]:
    return is_int(value) and 0 < int(value) < LARGEST


def describe(value: object) -> str:
    """What a value is, in a few words, however large it is."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    shape = getattr(value, "shape", None)  # of an array
    return f"a {type(value).__name__}" + (f" of shape {shape}" if isinstance(shape, tuple) else "")


def check_tensor(argument: str, value: object) -> None:
    """Raise ``ValueError`` for what is not a tensor, as an array, a list or a text."""
    if not isinstance(value, Tensor):
        raise ValueError(f"{argument}={shown(value)} is not a tensor; expected a torch.Tensor.")


def check_type(argument: str, value: object, kind: type | tuple[type, ...], expected: str) -> None:
    """Raise ``ValueError`` for what is not of a type."""
    if not isinstance(value, kind):
        raise ValueError(f"{argument}={shown(value)} is of another type; expected {expected}.")


def check_model(model: object) -> None:
    """Raise ``ValueError`` for what is not a network."""
    check_type("model", model, Module, "a torch.nn.Module")


def check_flag(argument: str, value: object) -> None:
    """Raise ``ValueError`` for what is neither True nor False."""
    check_type(argument, value, bool, "True or False")


def check_path(argument: str, value: object) -> None:
    """Raise ``ValueError`` for what is not the path of a file."""
    check_type(argument, value, (str, os.PathLike), "the path of a file")


def is_file(path: str | os.PathLike[str]) -> bool:
    """Is there such a file? Of a name that no file can have, there is none."""
    try:
        return Path(path).is_file()
    except OSError:
        return False


def check_maps_type(argument: str, maps: object) -> None:
    """Raise ``ValueError`` for maps that cannot be ordered: no tensor, or one of truth values or complex numbers."""
    check_tensor(argument, maps)
    if isinstance(maps, Tensor) and (maps.dtype == torch.bool or maps.is_complex()):
        raise ValueError(f"{argument}={describe(maps)} holds {maps.dtype}; expected maps of real numbers.")


def shown(value: object) -> str:
    """A number, a text or a few of them as they are written, of any other value what it is."""
    entries = value if isinstance(value, (tuple, list)) else [value]
    short = all(entry is None or isinstance(entry, (str, Real)) for entry in entries)
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
        raise ValueError(f"seed={shown(seed)} is not a seed; expected an int >= 0.")


def check_count(argument: str, value: object) -> None:
    """Raise ``ValueError`` for what is no positive number of things."""
    if not is_positive_int(value):
        raise ValueError(f"{argument}={shown(value)} is not a positive number; expected an int >= 1.")
