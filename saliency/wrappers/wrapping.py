"""What every wrapper does: check its method, refuse options that it cannot support, and keep the precision."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import Module

from saliency.engine.checks import check_flag, shown

Method = TypeVar("Method", bound=Callable[..., Any])  # a wrapped method has the same signature


def check_method(method: object, name: str) -> None:
    """Raise ``ValueError`` for what is not a method, such as the result of one, passed to the wrapper ``name``."""
    if not callable(method) or isinstance(method, Module):
        raise ValueError(
            f"method={shown(method)} is not a method; expected a function such as gradient, whose result is called: "
            f"{name}(gradient)(model, input, target)."
        )


def refuse_probes(options: dict[str, Any]) -> None:
    """Raise ``ValueError`` for options with which a method returns more than maps."""
    for option in ("debug", "return_convergence_delta"):
        check_flag(option, options.get(option, False))
        if options.get(option):
            raise ValueError(f"{option}=True is not possible for a wrapped method; expected {option}=False.")


def wide(x: Tensor) -> Tensor:
    """In float32 or wider: in bfloat16, a sum of hundreds of terms stops growing."""
    return x.to(torch.promote_types(x.dtype, torch.float32)) if x.is_floating_point() else x


def as_precise(x: Tensor, like: Tensor) -> Tensor:
    """In the precision of another tensor."""
    return x.to(like.dtype) if like.is_floating_point() else x
