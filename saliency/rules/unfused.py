"""Unfused: attention spelled out in operations that have the derivatives which the fused kernel lacks."""

from typing import Any

import torch
from torch import Tensor


def attend(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *args: Any, **kwargs: Any
) -> Tensor:
    """The result of ``F.scaled_dot_product_attention``.

    >>> q, k, v = torch.rand(3, 1, 1, 4, 2)
    >>> torch.allclose(attend(q, k, v), torch.nn.functional.scaled_dot_product_attention(q, k, v))
    True
    """
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, -torch.inf)
    output: Tensor = torch._scaled_dot_product_attention_math(query, key, value, attn_mask, *args, **kwargs)[0]
    return output
