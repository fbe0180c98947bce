"""Opening: run composite functions so that a mode sees the operations inside them."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import FunctionType

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from saliency.engine.nesting import OwnMode
from saliency.engine.operations import Function

# Functions that hide others: a mode sees the call, but nothing of what happens inside.
COMPOSITE = frozenset({F.multi_head_attention_forward})
HIDDEN = frozenset({F.linear, F.scaled_dot_product_attention, F.softmax, torch.bmm, torch.baddbmm})
_OVERRIDES = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")


@cache
def opened(function: Function) -> Function:
    """PyTorch's own code of a composite function, except that its single operations, not the whole, are passed to
    modes.

    >>> opened(F.multi_head_attention_forward).__code__ is F.multi_head_attention_forward.__code__
    True
    """
    hidden = dict.fromkeys(_OVERRIDES, lambda *tensors: False)
    same = FunctionType(function.__code__, {**function.__globals__, **hidden}, function.__name__, function.__defaults__)
    same.__kwdefaults__ = function.__kwdefaults__
    return same


@contextmanager
def seen_by(mode: OwnMode) -> Iterator[None]:
    """Let a mode see what runs inside, although PyTorch closes it while the mode handles a function."""
    TorchFunctionMode.__enter__(mode)
    try:
        yield
    finally:
        OwnMode.__exit__(mode, None, None, None)
