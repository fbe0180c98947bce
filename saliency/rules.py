"""Backward rules of single operations, and the tables made of them."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from saliency.engine.contexts import Rule, is_inplace, relu_rules

# Activations that are no ReLU but are used as one: the rules below act on their own derivative.
_ACTIVATIONS = (
    *(F.relu6, F.hardtanh, F.hardtanh_, F.leaky_relu, F.leaky_relu_, F.rrelu, F.rrelu_, torch.rrelu, torch.rrelu_),
    *(F.prelu, torch.prelu, Tensor.prelu),
    *(F.elu, F.elu_, F.celu, torch.celu, torch.celu_, F.selu, torch.selu, torch.selu_),
    *(F.gelu, F.silu, F.hardswish, F.mish),
)


def activation_rules(rule: Rule) -> dict[Callable[..., Any], Rule]:
    """The table that applies one rule to every activation function that gates its input."""
    return relu_rules(rule) | dict.fromkeys(_ACTIVATIONS, rule)


def guided(function: Callable[..., Any], input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    r"""Send back the positive part of the gradient: :math:`dx = f'(x) \cdot \max(0, dy)`.

    For ReLU the gradient passes where :math:`dy > 0` and :math:`x > 0`.
    Springenberg et al., Striving for Simplicity, ICLR workshop 2015.
    """
    if is_inplace(function, *args, **kwargs) and input._is_view():
        # Autograd would rewrite the history of the viewed tensor, past the hook.
        return input.copy_(guided(function, input.clone(), *args, **kwargs))
    output: Tensor = function(input, *args, **kwargs)
    if output.requires_grad:
        output.register_hook(torch.relu)
    return output


class _PositiveGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, function: Callable[..., Any], args: Any, kwargs: Any) -> Tensor:
        output: Tensor = function(input, *args, **kwargs)
        if output is input:
            ctx.mark_dirty(input)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return gradient.relu(), None, None, None


def deconvnet(function: Callable[..., Any], input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    r"""Send the gradient back through the activation itself: :math:`dx = \max(0, dy)`, whatever :math:`x` was.

    Zeiler and Fergus, Visualizing and Understanding Convolutional Networks, ECCV 2014.
    """
    output: Tensor = _PositiveGradient.apply(input, function, args, kwargs)
    return output


GUIDED = activation_rules(guided)
DECONVNET = activation_rules(deconvnet)
