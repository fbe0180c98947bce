"""Pairs: quotients of differences between an input and a reference, and operations spelled out with them."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from saliency.engine.comparing import Compared
from saliency.engine.kinds import parameters_of
from saliency.engine.operations import Operation
from saliency.engine.state import full_precision

Formula: TypeAlias = Callable[..., Tensor]  # (operation, *pairs (2, ...) of its tensors) -> pair of results

STILL = 1e-10  # a smaller difference counts as 0: the quotient is then the derivative


def precise(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors in float32 at least: half precision is too coarse for quotients of differences."""
    return [x.to(torch.promote_types(x.dtype, torch.float32)) if x.is_floating_point() else x for x in tensors]


def on_graph(function: Callable[..., Tensor], tensors: Sequence[Tensor], recorded: Sequence[bool]) -> list[Tensor]:
    """Apply a function to tensors, preserving their values, such that its gradient comes back to them."""
    with torch.enable_grad(), full_precision(tensors[0].device):
        leaves = [x.detach().requires_grad_(depends) for x, depends in zip(tensors, recorded, strict=True)]
        return [function(*leaves), *leaves]


def gradients(y: Tensor, leaves: Sequence[Tensor], gradient: Tensor) -> list[Tensor | None]:
    """The gradients of the leaves; ``None`` for those that do not require one."""
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    found = iter(torch.autograd.grad(y, wanted, gradient.to(y.dtype), retain_graph=True, allow_unused=True))
    return [next(found) if leaf.requires_grad else None for leaf in leaves]


def quotient(numerator: Tensor, moved: Tensor, otherwise: Tensor) -> Tensor:
    """The quotient by a displacement, or, where that is 0, another value."""
    still = moved.abs() <= STILL
    return torch.where(still, otherwise, numerator / moved.masked_fill(still, 1))


def slope(function: Callable[[Tensor], Tensor], x: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    r"""The slope :math:`\Delta y / \Delta x` of an elementwise function, and its value at ``x``.

    Where :math:`\Delta x` is close to 0, it is the derivative at ``x``.

    >>> slope(torch.square, torch.tensor([3.0, 1.0]), torch.tensor([1.0, 1.0]))[0]
    tensor([4., 2.])
    """
    y, leaf = on_graph(function, [x], [True])
    (derivative,) = torch.autograd.grad(y, leaf, torch.ones_like(y))
    y = y.detach()
    return quotient(y - function(reference), x - reference, derivative), y


# Nonlinear operations that mix entries are spelled out in sums, elementwise functions and products. These take
# pairs (2, ...), of the input and the reference, and return exact values, with multipliers in place of derivatives.


def _stand_in(value: Tensor, linear: Tensor) -> Tensor:
    return linear + (value - linear).detach()


def _rescaled(function: Callable[[Tensor], Tensor], pair: Tensor) -> Tensor:
    found, _ = slope(function, *pair.detach())
    return _stand_in(function(pair.detach()), found * pair)


def _product(a: Tensor, b: Tensor, function: Callable[[Tensor, Tensor], Tensor] = torch.mul) -> Tensor:
    means = [x.detach().mean(0, keepdim=True) for x in (a, b)]
    return _stand_in(function(a, b), function(a, means[1]) + function(means[0], b))


def _highest(pair: Tensor, dim: int) -> Tensor:
    x = pair.detach()
    y, at = x.max(dim, keepdim=True)
    top = y.amax(0)
    sent = torch.zeros_like(x).scatter_(dim, at, torch.stack([top - y[1], y[0] - top]))
    multiplier = quotient(sent.sum(0), x[0] - x[1], torch.zeros_like(x[0]))
    return _stand_in(y, (multiplier * pair).sum(dim, keepdim=True))


def _exponentials(pair: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """The logits minus the highest of them, their exponentials, and the sums of these."""
    pair = pair.clamp_min(torch.finfo(pair.dtype).min / 4)  # masks are minus infinity
    logits = pair - _highest(pair, dim)
    exponentials = _rescaled(torch.exp, logits)
    return logits, exponentials, exponentials.sum(dim, keepdim=True)


def _softmax(pair: Tensor, dim: int) -> Tensor:
    _, exponentials, sums = _exponentials(pair, dim)
    return _product(exponentials, _rescaled(torch.reciprocal, sums))


def _standardised(pair: Tensor, dims: list[int], eps: float, centred: bool = True) -> Tensor:
    pair = pair - pair.mean(dims, keepdim=True) if centred else pair
    squares = _product(pair, pair).mean(dims, keepdim=True)
    return _product(pair, _rescaled(lambda square: (square + eps).rsqrt(), squares))


def spelled(formula: Formula) -> Callable[[Compared, Tensor], list[Tensor | None]]:
    """The rule of an operation: the multipliers of a formula of pairs, one for each of its tensors."""

    def rule(op: Compared, multiplier: Tensor) -> list[Tensor | None]:
        pairs = [torch.stack(pair) for pair in zip(precise(op.tensors), precise(op.reference.tensors), strict=True)]
        y, *leaves = on_graph(lambda *pairs: formula(op, *pairs)[0], pairs, op.recorded)
        found = gradients(y, leaves, multiplier)
        return [None if m is None else m[0].to(multiplier.dtype) for m in found]

    return rule


def softmax(op: Operation, pair: Tensor) -> Tensor:
    """Softmax: the product of exponentials with the reciprocal of their sum."""
    return _softmax(pair, _axis(op, pair))


def log_softmax(op: Operation, pair: Tensor) -> Tensor:
    """The logarithm of softmax: logits minus the logarithm of the sum."""
    logits, _, sums = _exponentials(pair, _axis(op, pair))
    return logits - _rescaled(torch.log, sums)


def _axis(op: Operation, pair: Tensor, default: int = -1) -> int:
    """The axis of an operation, counted from the end, because pairs have one more in front."""
    dim: int = op.argument(1, "dim", default)
    return dim if dim < 0 else dim + 1 - pair.ndim


def _scaled(pair: Tensor, weight: Tensor | None, axes: int = 0) -> Tensor:
    return pair if weight is None else pair * weight.view(*weight.shape, *[1] * axes)


def layer_norm(op: Operation, pair: Tensor, *parameters: Tensor) -> Tensor:
    """Layer normalisation: centring, and the product with a reciprocal square root of a mean of products."""
    dims = [*range(-len(op.argument(1, "normalized_shape")), 0)]
    return _scaled(_standardised(pair, dims, op.argument(4, "eps", 1e-5)), op.argument(2, "weight"))


def rms_norm(op: Operation, pair: Tensor, *parameters: Tensor) -> Tensor:
    """The same without centring."""
    dims, eps = [*range(-len(op.argument(1, "normalized_shape")), 0)], op.argument(3, "eps")
    eps = torch.finfo(op.tensors[0].dtype).eps if eps is None else eps
    return _scaled(_standardised(pair, dims, eps, centred=False), op.argument(2, "weight"))


def group_norm(op: Operation, pair: Tensor, *parameters: Tensor) -> Tensor:
    """The same for groups of channels."""
    groups = pair.unflatten(2, (op.argument(1, "num_groups"), -1))
    standardised = _standardised(groups, [*range(3, groups.ndim)], op.argument(4, "eps", 1e-5)).flatten(2, 3)
    return _scaled(standardised, op.argument(2, "weight"), pair.ndim - 3)


def instance_norm(op: Operation, pair: Tensor, *parameters: Tensor) -> Tensor:
    """The same for each channel."""
    standardised = _standardised(pair, [*range(3, pair.ndim)], op.argument(7, "eps", 1e-5))
    return _scaled(standardised, parameters_of(op)[2], pair.ndim - 3)


def local_response_norm(op: Operation, pair: Tensor) -> Tensor:
    """The product with a power of the mean square of neighbouring channels."""
    size, alpha = op.argument(1, "size"), op.argument(2, "alpha", 1e-4)
    beta, k = op.argument(3, "beta", 0.75), op.argument(4, "k", 1.0)
    squares = F.pad(_product(pair, pair).movedim(2, -1), (size // 2, (size - 1) // 2)).unfold(-1, size, 1).mean(-1)
    return _product(pair, _rescaled(lambda square: (k + alpha * square) ** -beta, squares.movedim(-1, 2)))


def normalize(op: Operation, pair: Tensor) -> Tensor:
    """The product with the reciprocal of a Euclidean length."""
    dim, eps = op.argument(2, "dim", 1), op.argument(3, "eps", 1e-12)
    squares = _product(pair, pair).sum(dim if dim < 0 else dim + 1, keepdim=True)
    return _product(pair, _rescaled(lambda square: square.clamp_min(eps**2).rsqrt(), squares))


def gated(op: Operation, pair: Tensor) -> Tensor:
    """GLU: the product of one half with a sigmoid of the other."""
    half, gate = pair.chunk(2, _axis(op, pair))
    return _product(half, _rescaled(torch.sigmoid, gate))


def attend(op: Operation, query: Tensor, key: Tensor, value: Tensor, *masks: Tensor) -> Tensor:
    """Attention: products, and a softmax between them. A mask is a constant."""
    scale, mask = op.argument(6, "scale"), op.argument(3, "attn_mask")
    logits = _product(query, key.mT, torch.matmul) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if op.argument(5, "is_causal", False):
        mask = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).tril()
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask
    return _product(_softmax(logits, -1), value, torch.matmul)
