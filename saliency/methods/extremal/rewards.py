"""Rewards: the objective that the search for masks maximises."""

import math
from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor

from saliency.engine.targets import class_indices
from saliency.methods.extremal.search import DUAL_VARIANT, PRESERVE_VARIANT, check_variant

RewardFunction: TypeAlias = Callable[..., Tensor]  # reward_func(activation, target, variant=variant)


def simple_reward(activation: Tensor, target: int | Tensor, variant: str) -> Tensor:
    """The score of every mask: :math:`y_c` to preserve, :math:`-y_c` to delete, and their sum for both at once.

    ``activation`` is (B, C) or (B, C, h, w), ``target`` a channel, or one per row as a LongTensor (B,). For
    ``'dual'``, the first half of the rows holds what the masks keep, the second half what they delete. Returns (B,
    ...), or (B / 2, ...). Raises ``ValueError`` for an unknown variant or a channel out of range.

    >>> import torch
    >>> simple_reward(torch.tensor([[1.0, 2.0], [3.0, 5.0]]), 1, 'dual')
    tensor([-3.])
    """
    return _play(activation.gather(1, _channel(activation, target)).squeeze(1), variant)


def contrastive_reward(activation: Tensor, target: int | Tensor, variant: str) -> Tensor:
    r"""The margin of the score over the largest other score of the same mask: :math:`y_c - \max_{c' \neq c} y_{c'}`.

    Variants, shapes and errors as for :func:`simple_reward`; an activation with a single channel is an error too.

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
    """The index of the target's channel, shaped like an activation with one channel."""
    if isinstance(target, Tensor) and target.shape == activation.shape[:1]:  # unchecked: that waits for a GPU
        index = target.to(activation.device).view(-1, *[1] * (activation.ndim - 1))
    else:
        index = class_indices(activation, target)
    return index.expand_as(activation[:, :1])


def _play(score: Tensor, variant: str) -> Tensor:
    check_variant(variant)
    if variant != DUAL_VARIANT:
        return score if variant == PRESERVE_VARIANT else -score
    if len(score) % 2:
        raise ValueError(f"activation={len(score)} rows cannot be halved; expected an even number of rows.")
    kept, deleted = score.chunk(2)
    return kept - deleted
