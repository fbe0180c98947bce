"""Cross attention: the relevance of an image's tokens to the queries that attend to them, layer by layer."""

from collections.abc import Sequence

import torch
from torch import Tensor

from saliency.engine.attention import Attention
from saliency.engine.maps import safe_divide
from saliency.methods.chains import Step, check_whole, raising, refused
from saliency.methods.tokens import Observed


def follow_queries(observed: Observed, gradients: Sequence[Tensor | None], read: Tensor) -> Tensor:
    r"""The relevance (N, tokens) of an encoder's tokens for the decoder's queries that the score reads.

    Starting from :math:`R_{ii} = R_{qq} = I, R_{qi} = 0`, with :math:`\bar A` as in a chain and :math:`\hat R` as
    in :func:`_normalised`, each attention adds

    .. math:: R_{ii} += \bar A R_{ii}, \quad
              R_{qi} += \bar A R_{qi}, \; R_{qq} += \bar A R_{qq}, \quad
              R_{qi} += \hat R_{qq}^\top \bar A \hat R_{ii}

    among the tokens, among the queries, and from queries to tokens.
    """
    kinds = _kinds(observed)
    steps = [Step(of, gradient, True) for of, gradient in zip(observed.chain, gradients, strict=True)]
    image = next(step.attention for step, kind in zip(steps, kinds, strict=True) if kind == "cross")
    tokens = _identity(image, image.keys, read)
    queries = _identity(image, image.queries, read)
    found = torch.zeros(image.shape[0], image.queries, image.keys, dtype=tokens.dtype, device=tokens.device)
    for step, kind in zip(steps, kinds, strict=True):
        raised = raising(step).to(tokens.dtype)
        if kind == "tokens":
            tokens = tokens + raised @ tokens
        elif kind == "queries":
            found, queries = found + raised @ found, queries + raised @ queries
        else:
            found = found + _normalised(queries).mT @ (raised @ _normalised(tokens))
    return (read[:, None].to(found.dtype) @ found).squeeze(1)


def _kinds(observed: Observed) -> list[str]:
    """The kind of each attention. Raises ``ValueError`` where one belongs to neither encoder nor decoder."""
    numbers, streams = [observed.numbers[at] for at in observed.chosen], observed.streams
    crossing = [number for number in numbers if streams.is_cross(number)]
    encoder = streams.behind(crossing[0])
    image = observed.chain[numbers.index(crossing[0])]
    sizes = {"tokens": (image.keys,) * 2, "queries": (image.queries,) * 2, "cross": (image.queries, image.keys)}
    kinds = []
    for number, attention in zip(numbers, observed.chain, strict=True):
        check_whole(observed.call, attention)
        kind = "cross" if number in crossing else "tokens" if number in encoder else "queries"
        if attention.shape[2:] != sizes[kind] or (kind == "cross" and streams.behind(number) != encoder):
            raise refused(observed.call, attention, "has cross attention to other tokens")
        kinds.append(kind)
    return kinds


def _identity(attention: Attention, tokens: int, like: Tensor) -> Tensor:
    eye = torch.eye(tokens, dtype=like.dtype, device=like.device)
    return eye.expand(attention.shape[0], -1, -1)


def _normalised(relevance: Tensor) -> Tensor:
    """The relevance with all but the identity scaled to sum to 1 per token, or left at 0 where there is none."""
    eye = torch.eye(relevance.shape[-1], dtype=relevance.dtype, device=relevance.device)
    added = relevance - eye
    return safe_divide(added, added.sum(-1, keepdim=True)) + eye
