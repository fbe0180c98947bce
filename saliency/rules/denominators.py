"""Denominators: relevance is divided by results, which may be 0 or so close to it that a quotient overflows."""

import torch
import torch.nn.functional as F
from torch import Tensor


def negligible(dtype: torch.dtype) -> float:
    """The magnitude up to which a number counts as 0: 3e-35 in float32."""
    numbers = torch.finfo(dtype)
    return float(numbers.tiny / numbers.eps**0.5)


def away_from_0(z: Tensor, epsilon: float = 0.0) -> Tensor:
    r"""Denominators moved away from 0, :math:`z + \epsilon \operatorname{sign} z`.

    If ``epsilon`` is 0, those that count as 0 become infinite, so that quotients by them are 0.

    >>> away_from_0(torch.tensor([2.0, 0.0, -1e-38]))
    tensor([2., inf, -inf])
    """
    if epsilon:
        return z.abs().add_(epsilon).copysign_(z)
    return F.threshold(z.abs(), negligible(z.dtype), torch.inf).copysign_(z)
