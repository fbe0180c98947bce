"""Rewards: what a perturbed image is worth to the search for masks."""

import math
from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor

from saliency.engine.targets import class_indices
from saliency.methods.extremal.search import DUAL_VARIANT, PRESERVE_VARIANT, check_variant

RewardFunction: TypeAlias = Callable[..., Tensor]  # reward_func(activation, target, variant=variant)


def simple_reward(activation: Tensor, target: int | Tensor, variant: str) -> Tensor:
    r"""The score of every mask: :math:`y_c` to preserve, :math:`-y_c` to delete, their sum for both at once.

    ``activation`` is (B, C) or (B, C, h, w), ``target`` a channel or one for every row, a LongTensor (B,). For
    ``'dual'``, the first half of the rows is what the masks keep, the second what they delete. Returns (B, ...), or
    (B / 2, ...). Raises ``ValueError`` for a variant or channel that is not there.

    >>> import torch
    >>> simple_reward(torch.tensor([[1.0, 2.0], [3.0, 5.0]]), 1, 'dual')
    tensor([-3.])
    """
    return _play(activation.gather(1, _channel(activation, target)).squeeze(1), variant)


def contrastive_reward(activation: Tensor, target: int | Tensor, variant: str) -> Tensor:
    r"""How far the score is above the largest other one of the same mask: :math:`y_c - \max_{c' \neq c} y_{c'}`.

    Variants, shapes and errors as for :func:`simple_reward`; an activation of a single channel is an error too.

    >>> import torch
    >>> contrastive_reward(torch.tensor([[1.0, 2.0, 5.0], [3.0, 5.0, 4.0]]), 1, 'preserve')
    tensor([-3.,  1.])
    """
    index = _channel(activation, target)
    if activation.shape[1] < 2:
        raise ValueError(
            f"activation={tuple(activation.shape)} has no other channel to compare with; expected two or more."
        )
    others = activation.scatter(1, index, -math.inf).max(1).values
    return _play(activation.gather(1, index).squeeze(1) - others, variant)


def _channel(activation: Tensor, target: int | Tensor) -> Tensor:
    """The index of the target's channel, shaped like an activation of one channel."""
    if isinstance(target, Tensor) and target.shape == activation.shape[:1]:  # not looked into: that waits for a GPU
        index = target.to(activation.device).view(-1, *[1] * (activation.ndim - 1))
    else:
        index = class_indices(activation, target)
    return index.expand_as(activation[:, :1])


def _play(score: Tensor, variant: str) -> Tensor:
    check_variant(variant)
    if variant != DUAL_VARIANT:
        return score if variant == PRESERVE_VARIANT else -score
    if len(score) % 2:
        raise ValueError(f"activation={len(score)} rows have no two halves; expected an even number of rows.")
    kept, deleted = score.chunk(2)
    return kept - deleted
