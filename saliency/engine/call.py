"""Calls: how the model is called, and with which rows of its batch."""

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor
from torch.nn import Module
from torch.utils._pytree import tree_map_only

from saliency.engine.state import own_copy

Input: TypeAlias = Tensor | tuple[Tensor, ...]


class Call(NamedTuple):
    """How the model is called: the explained inputs first, then what else reaches its ``forward``."""

    inputs: tuple[Tensor, ...]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def make_call(input: Any, additional_forward_args: Any = None, forward_kwargs: Any = None) -> Call:
    """Check what reaches the model. Raises ``ValueError`` for an input that is no batch of tensors."""
    inputs = tuple(input) if isinstance(input, (tuple, list)) else (input,)
    if not inputs or not all(isinstance(tensor, Tensor) for tensor in inputs):
        raise ValueError(f"input={type(input).__name__} is no tensor; a tensor (N, C, H, W) or a tuple is accepted.")
    if any(tensor.ndim < 2 or not len(tensor) for tensor in inputs):
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in inputs)
        raise ValueError(f"input={shapes} is no batch of samples; a tensor (N, C, H, W) with N > 0 is accepted.")
    extra = additional_forward_args
    args = () if extra is None else tuple(extra) if isinstance(extra, (tuple, list)) else (extra,)
    if not isinstance(forward_kwargs, (Mapping, type(None))):
        raise ValueError(f"forward_kwargs={forward_kwargs!r} is no mapping; a dict of keyword arguments is accepted.")
    return Call(inputs, args, dict(forward_kwargs or {}))


def take_rows(call: Call, index: Tensor) -> Call:
    """The call with the rows of its batch in the order of ``index``; nothing of it is shared with the caller.

    Tensors of as many rows as the input has go along, all others stay as they are; so does a vector of one float.
    """
    samples = call.inputs[0].shape[:1]

    def take(tensor: Tensor) -> Tensor:
        single = tensor.shape == (1,) and tensor.is_floating_point()  # a factor, not one image's label
        along = tensor.shape[:1] == samples and not single
        return tensor.detach()[index.to(tensor.device)] if along else own_copy(tensor)

    return Call(*tree_map_only(Tensor, take, tuple(call)))


def run_rows(model: Module, call: Call, tensors: Tensor, index: Tensor, at: int = 0) -> Any:
    """The model's output for ``tensors`` in place of one of the inputs; all else follows the rows of ``index``."""
    others = list(call.inputs)
    others[at] = tensors.new_empty(len(others[at]), 0)  # need not be copied
    inputs, args, kwargs = take_rows(call._replace(inputs=tuple(others)), index)
    return model(*inputs[:at], tensors, *inputs[at + 1 :], *args, **kwargs)
