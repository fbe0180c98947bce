"""Backward rules of single operations, and the tables made of them."""

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter

from saliency.engine.contexts import ACTIVATIONS, Rule, activation_rules, is_inplace

WEIGHTED = (
    *(F.linear, F.conv1d, F.conv2d, F.conv3d),
    *(F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
)
_MEANS = (
    *(F.avg_pool1d, F.avg_pool2d, F.avg_pool3d),
    *(F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d),
    *(torch.mean, Tensor.mean),
)
_SUMS = (torch.add, Tensor.add, Tensor.add_)
_PRODUCTS = (torch.mul, Tensor.mul, Tensor.mul_, torch.div, Tensor.div, Tensor.div_)
_NORMALISATIONS = (
    *(F.batch_norm, torch.batch_norm, F.instance_norm, torch.instance_norm, F.group_norm, torch.group_norm),
    *(F.layer_norm, torch.layer_norm, F.rms_norm, torch.rms_norm, F.local_response_norm),
)
# Monotone in every input of its own: a neuron and its activation are one.
_SQUASHING = (
    *(F.sigmoid, torch.sigmoid, torch.sigmoid_, Tensor.sigmoid, Tensor.sigmoid_, F.hardsigmoid, F.logsigmoid),
    *(F.tanh, torch.tanh, torch.tanh_, Tensor.tanh, Tensor.tanh_, F.softplus, F.softsign),
    *(F.softmax, torch.softmax, Tensor.softmax, F.log_softmax, torch.log_softmax, Tensor.log_softmax),
)


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


class _SentBack(torch.autograd.Function):
    """An operation whose gradient is made from the output's gradient alone."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, send_back: Callable[[Tensor], Tensor], function: Callable[..., Any], *call: Any
    ) -> Tensor:
        ctx.send_back = send_back
        args, kwargs = call
        output: Tensor = function(input, *args, **kwargs)
        if output is input:
            ctx.mark_dirty(input)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        return ctx.send_back(gradient), None, None, None, None


def _recorded(*inputs: Tensor) -> bool:
    """Will a backward pass come through here? In front of the first probe there is none."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in inputs)


def _send_back(
    send_back: Callable[[Tensor], Tensor], function: Callable[..., Any], input: Tensor, args: Any, kwargs: Any
) -> Tensor:
    if not _recorded(input):
        output: Tensor = function(input, *args, **kwargs)
    else:
        output = _SentBack.apply(input, send_back, function, args, kwargs)
    return output


def deconvnet(function: Callable[..., Any], input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    r"""Send the gradient back through the activation itself: :math:`dx = \max(0, dy)`, whatever :math:`x` was.

    Zeiler and Fergus, Visualizing and Understanding Convolutional Networks, ECCV 2014.
    """
    return _send_back(torch.relu, function, input, args, kwargs)


def unchanged(function: Callable[..., Any], input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    r"""Send back what comes, whatever the operation does to its input: :math:`dx = dy`."""
    return _send_back(torch.clone, function, input, args, kwargs)


def shares(function: Callable[..., Tensor], inputs: Sequence[Tensor], relevance: Tensor) -> list[Tensor]:
    r"""Share out the relevance :math:`R` of a linear function's results among its inputs, by what each adds to them.

    .. math:: R_i = x_i \sum_j \frac{\partial f_j}{\partial x_i} \frac{R_j}{f_j(x)}

    The shares of :math:`R_j` sum to it, unless :math:`f_j(x) = 0`: then it is lost. Computed in float32 at least,
    where a result next to nothing (3e-35 in float32) counts as 0, so that no quotient overflows.
    """
    precision = torch.promote_types(relevance.dtype, torch.float32)
    with torch.enable_grad(), torch.autocast(relevance.device.type, enabled=False):
        inputs = [x.detach().to(precision).requires_grad_() for x in inputs]
        results = function(*inputs)
    gradients = torch.autograd.grad(results, inputs, relevance.to(precision) / _nonzero(results.detach()))
    return [(x.detach() * dx).to(relevance.dtype) for x, dx in zip(inputs, gradients, strict=True)]


def _nonzero(results: Tensor) -> Tensor:
    """The results, infinite where they are next to nothing, so that what is divided by them is 0."""
    nothing = torch.finfo(results.dtype).tiny / torch.finfo(results.dtype).eps ** 0.5
    return F.threshold(results.abs(), nothing, torch.inf).copysign_(results)


class _Shared(torch.autograd.Function):
    """An operation that shares out its relevance as a linear function of what is active of its inputs does."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], rule: tuple[Any, Any, Any], *inputs: Tensor) -> Tensor:
        ctx.linear, ctx.active, keep = rule
        ctx.save_for_backward(*map(keep, inputs))
        output = function(*inputs)
        if output is inputs[0]:
            ctx.mark_dirty(output)
        return output

    @staticmethod
    def backward(ctx: Any, relevance: Tensor) -> tuple[Any, ...]:
        return None, None, *shares(ctx.linear, [ctx.active(x) for x in ctx.saved_tensors], relevance)


def _share_out(
    function: Callable[..., Tensor],
    linear: Callable[..., Tensor],
    *inputs: Tensor,
    active: Callable[[Tensor], Tensor] = torch.relu,
    keep: Callable[[Tensor], Tensor] = torch.clone,
) -> Tensor:
    """Share out by ``linear`` of the ``active`` inputs; what autograd keeps need not be copied to ``keep`` it."""
    if not _recorded(*inputs):
        return function(*inputs)
    output: Tensor = _Shared.apply(function, (linear, active, keep), *inputs)
    return output


_ROOM = 2**22  # entries that the memory for weights has from the start: enough for most layers


class PositivePart(threading.local):
    r"""The excitatory part of a weight, :math:`w^+ = \max(0, w)`, which lasts until the next one is asked for.

    It stands in memory that is used again, in the same thread: fresh memory for every layer takes longer than its
    convolution.
    """

    def __init__(self) -> None:
        self._memory: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def __call__(self, weight: Tensor) -> Tensor:
        weight, kind = weight.detach(), (weight.device, weight.dtype)
        if kind not in self._memory or self._memory[kind].numel() < weight.numel():
            self._memory[kind] = weight.new_empty(max(weight.numel(), _ROOM))
        memory = self._memory[kind][: weight.numel()].view(weight.shape)
        return torch.clamp(weight, min=0, out=memory)


def excite(
    excitatory: Callable[[Tensor], Tensor],
    function: Callable[..., Any],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    r"""Share out by excitatory weights and active inputs, without the bias: :math:`f(x^+; w^+)`.

    Zhang et al., Top-down Neural Attention by Excitation Backprop, ECCV 2016, equation 3.
    """

    def linear(x: Tensor) -> Tensor:
        result: Tensor = function(x, excitatory(weight).to(x.dtype), None, *args, **kwargs)
        return result

    # Autograd keeps a convolution's input in any case, that of a linear layer only for the gradient of its weight.
    kept = function is not F.linear or weight.requires_grad
    keep = torch.Tensor.detach if kept else torch.clone
    return _share_out(lambda x: function(x, weight, bias, *args, **kwargs), linear, input, keep=keep)


def excite_mean(function: Callable[..., Any], input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Share out a mean, whose weights are all positive, among the active inputs."""

    def mean(x: Tensor) -> Tensor:
        result: Tensor = function(x, *args, **kwargs)
        return result

    return _share_out(mean, mean, input)


def _is_constant(term: Any, other: Any) -> bool:
    """Is this a number, (a view of) a parameter, or one row of entries for a whole batch?"""
    if not isinstance(term, Tensor) or isinstance(term, Parameter) or isinstance(term._base, Parameter):
        return True
    fewer = isinstance(other, Tensor) and (term.ndim < other.ndim or (len(term) == 1 and term.shape != other.shape))
    return fewer and not term.requires_grad


def excite_sum(function: Callable[..., Any], input: Any, other: Any, *args: Any, **kwargs: Any) -> Any:
    """Share out a sum among its two terms; a constant counts as a bias, and gets nothing."""
    alpha = kwargs.get("alpha", 1)
    plain = args or kwargs.keys() - {"alpha"} or _is_constant(input, other) or _is_constant(other, input)
    if plain or not _recorded(input, other):
        return function(input, other, *args, **kwargs)
    if is_inplace(function) and input._is_view():
        return input.copy_(excite_sum(torch.add, input, other, **kwargs))
    return _share_out(
        lambda x, y: function(x, y, **kwargs),
        lambda x, y: torch.add(x, y, alpha=alpha),
        *(input, other),
        active=torch.Tensor.detach,
    )


def excite_product(function: Callable[..., Any], input: Any, other: Any, *args: Any, **kwargs: Any) -> Any:
    """Pass on what comes to a tensor that is only scaled, by a constant; any other product keeps its gradient."""
    scaled = isinstance(input, Tensor) and _is_constant(other, input) and not kwargs
    if scaled and (not isinstance(other, Tensor) or torch.broadcast_shapes(input.shape, other.shape) == input.shape):
        return unchanged(function, input, other, *args)
    return function(input, other, *args, **kwargs)


GUIDED = activation_rules(guided)
DECONVNET = activation_rules(deconvnet)


def excitation_rules(excitatory: Callable[[Tensor], Tensor]) -> dict[Callable[..., Any], Rule]:
    """The table of excitation backprop; ``excitatory`` gives the part of a weight that excites.

    ReLU, max pooling and concatenation have no row: their gradient is the paper's rule.
    """
    return {
        **dict.fromkeys(ACTIVATIONS + _SQUASHING + _NORMALISATIONS, unchanged),
        **dict.fromkeys(WEIGHTED, partial(excite, excitatory)),
        **dict.fromkeys(_MEANS, excite_mean),
        **dict.fromkeys(_SUMS, excite_sum),
        **dict.fromkeys(_PRODUCTS, excite_product),
    }
