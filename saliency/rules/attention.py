"""Attention: relevance through products of two tensors that depend on the image, including those inside attention."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from saliency.engine.kinds import ATTENTION, MATRIX_PRODUCTS, PRODUCTS, QUOTIENTS, SOFTMAX
from saliency.engine.operations import Function, Operation, Row, Rule, with_exported
from saliency.rules.activations import PASSING
from saliency.rules.constants import enter_constants

_FUSED_PRODUCTS = with_exported(torch.einsum, torch.addcmul, Tensor.addcmul)
_ARGUMENTS = ("query", "key", "value", "attn_mask")


def _share_product(op: Operation, gradient: Tensor, spared: Collection[str]) -> list[Tensor | None]:
    """Split relevance between the factors that depend on the image; gates get nothing, except the ``spared`` kinds."""
    adds = op.function.__name__.startswith(("baddbmm", "addcmul"))  # they add the product to their first tensor
    factors = [i for i, origin in enumerate(op.standing.origins) if origin.depends and not (adds and i == 0)]
    getting = [i for i in factors if op.standing.origins[i].gate in ("", *spared)] or factors
    found = op.derivative(gradient, of=[*getting, 0] if adds else getting)
    found = [dx / len(getting) if dx is not None and i in getting else dx for i, dx in enumerate(found)]
    return enter_constants(op, gradient, found) if adds else found


def _share_quotient(op: Operation, gradient: Tensor) -> list[Tensor | None]:
    """All relevance goes to the numerator."""
    return op.derivative(gradient, of=[0]) if isinstance(op.args[0], Tensor) else [None]


def _share_attention(op: Operation, gradient: Tensor, shares: Mapping[str, float]) -> list[Tensor | None]:
    """Send each argument of attention, by name, the fraction ``shares`` of its own gradient."""
    names = [_ARGUMENTS[at] if isinstance(at, int) else at for at, _ in op.places]
    found = op.derivative(gradient, of=[i for i, name in enumerate(names) if name in shares])
    return [None if dx is None else dx * shares[name] for name, dx in zip(names, found, strict=True)]


def _rows(spared: Collection[str], shares: Mapping[str, float]) -> dict[Function, Row]:
    products = Rule(lambda op, gradient: _share_product(op, gradient, spared))
    return {
        **dict.fromkeys(PRODUCTS + MATRIX_PRODUCTS + _FUSED_PRODUCTS, products),
        **dict.fromkeys(QUOTIENTS, Rule(_share_quotient)),
        **dict.fromkeys(ATTENTION, Rule(lambda op, gradient: _share_attention(op, gradient, shares))),
    }


# Attention weights are constants: relevance passes through the values alone, and is conserved.
# Ali et al., XAI for Transformers: Better Explanations through Conservative Propagation, ICML 2022.
CP = {**PASSING, **_rows((), {"value": 1.0})}

# Each of two factors gets half. Softmax sends back its own gradient, which does not conserve relevance.
# Achtibat et al., AttnLRP: Attention-Aware Layer-Wise Relevance Propagation for Transformers, ICML 2024.
ATTN_LRP = {
    **{function: row for function, row in PASSING.items() if function not in SOFTMAX},
    **_rows(("softmax",), {"query": 0.25, "key": 0.25, "value": 0.5, "attn_mask": 0.5}),
}
