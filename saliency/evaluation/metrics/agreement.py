"""Agreement: do two maps order the pixels alike?"""

import torch
from torch import Tensor

from saliency.engine.checks import check_flag, check_maps_type
from saliency.engine.maps import safe_divide


def rank_correlation(a: Tensor, b: Tensor, absolute: bool = False) -> Tensor:
    r"""Spearman's rank correlation (N,) in [-1, 1] of each map with the other of the pair.

    .. math:: \rho_n = \mathrm{corr}_u(\mathrm{rank}_u(a_n), \mathrm{rank}_u(b_n))

    ``a`` and ``b`` are (N, 1, h, w), or any (N, ...) of one shape. Equal values share the mean of their ranks.
    A constant map orders nothing: its correlation is 0, also with itself. ``absolute`` ranks :math:`|a|` and
    :math:`|b|`, which ignores the sign.
    Raises ``ValueError`` for shapes that differ and for NaN or infinity.

    >>> rank_correlation(torch.tensor([[1.0, 2.0, 30.0], [7.0, 7.0, 7.0]]), torch.tensor([[0.0, -1.0, -2.0]] * 2))
    tensor([-1.,  0.])
    """
    check_maps_type("a", a)
    check_maps_type("b", b)
    check_flag("absolute", absolute)
    if a.shape != b.shape or a.ndim < 2 or not a[:1].numel():
        raise ValueError(
            f"a={tuple(a.shape)} and b={tuple(b.shape)} are not a pair; expected two tensors (N, 1, h, w)."
        )
    if not (a.isfinite().all() and b.isfinite().all()):
        raise ValueError("a, b=NaN or infinity cannot be ranked; expected finite maps.")
    a, b = (_centred_ranks(map.abs() if absolute else map) for map in (a, b))
    spread = ((a * a).sum(1) * (b * b).sum(1)).sqrt()
    return safe_divide((a * b).sum(1), spread).clamp(-1, 1)


def _centred_ranks(maps: Tensor) -> Tensor:
    """Twice the difference of each value's rank from the mean rank, as a share of the values' number."""
    values = maps.detach().to(torch.promote_types(maps.dtype, torch.float32)).flatten(1).contiguous()
    ordered, order = values.sort(1)
    # Below a value stand as many as there are before its equals; the mean rank is between the first and last of these.
    twice = torch.searchsorted(ordered, ordered) + torch.searchsorted(ordered, ordered, right=True)
    ranks = torch.empty_like(twice).scatter_(1, order, twice)
    return (ranks - values.shape[1]).to(values.dtype) / values.shape[1]
