"""Checks of arguments, and the words of their errors."""

import math
from numbers import Integral, Real
from typing import TypeGuard

from torch import Tensor
from torch.nn import Module

_LONGEST = 300  # characters of a value in an error


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


def shown(value: object) -> str:
    """A value as an error repeats it; of tensors, modules and what is long, only what it is."""
    if isinstance(value, (tuple, list)) and any(isinstance(item, (Tensor, Module, tuple, list)) for item in value):
        text = f"[{', '.join(map(shown, value))}]"
    else:
        text = describe(value) if isinstance(value, (Tensor, Module)) or hasattr(value, "__array__") else repr(value)
    return text if len(text) <= _LONGEST else describe(value)


def check_seed(seed: object) -> None:
    """Raise ``ValueError`` for what seeds no generator."""
    if not is_int(seed) or not 0 <= seed < 2**63:
        raise ValueError(f"seed={shown(seed)} is not a seed; expected an int >= 0.")


def check_count(argument: str, value: object) -> None:
    """Raise ``ValueError`` for what is no positive number of things."""
    if not is_int(value) or value < 1:
        raise ValueError(f"{argument}={shown(value)} is not a positive number; expected an int >= 1.")
