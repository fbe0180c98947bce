"""Attention methods: what the tokens of a transformer attend to, and how that affects the score."""

from collections.abc import Callable, Iterator
from functools import reduce

import torch
from torch import Tensor
from torch.nn import Module
from typing_extensions import Unpack

from saliency.engine.call import Input
from saliency.engine.checks import is_number, shown
from saliency.engine.layers import Layers
from saliency.engine.maps import safe_divide
from saliency.engine.signatures import Maps, typed
from saliency.engine.targets import Target
from saliency.methods.chains import Rows, Step, follow, parts
from saliency.methods.cross_attention import follow_queries
from saliency.methods.tokens import AttentionOptions, Observed, explain_tokens

# How heads are fused: over an axis, and from two partial results.
_FUSIONS: dict[str, tuple[Callable[[Tensor, int], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "mean": (torch.sum, torch.add),
    "max": (torch.amax, torch.maximum),
    "min": (torch.amin, torch.minimum),
}


def _check_fusion(head_fusion: object) -> None:
    if not isinstance(head_fusion, str) or head_fusion not in _FUSIONS:
        raise ValueError(
            f"head_fusion={shown(head_fusion)} is not a valid fusion; expected one of {', '.join(_FUSIONS)}."
        )


def _fused(step: Step, head_fusion: str, rows: Rows = slice(None)) -> Tensor:
    """The attention of all heads fused into one, (N, rows, keys)."""
    fuse, join = _FUSIONS[head_fusion]
    fused = reduce(join, (fuse(step.attention.weights(part, rows), 1) for part in step.attention.heads()))
    return fused / step.attention.shape[1] if head_fusion == "mean" else fused


@typed
def raw_attention(
    model: Module,
    input: Input,
    target: Target,
    saliency_layer: Layers = None,
    head_fusion: str = "mean",
    **options: Unpack[AttentionOptions],
) -> Maps:
    r"""Raw attention: what the queries that the score depends on attend to, in one layer.

    .. math:: s_{nj} = \frac{1}{H} \sum_h A_{nhqj}

    with :math:`q` the class token, or the mean over all tokens that the score reads. The layer is the last one, or
    the last inside ``saliency_layer``. ``head_fusion`` is ``'mean'``, ``'max'`` or ``'min'``. (N, 1, h, w),
    non-negative, the same for every class. Bahdanau et al., ICLR 2015. Options and errors: see
    :func:`~saliency.methods.tokens.explain_tokens`.
    """
    _check_fusion(head_fusion)

    def relevance(observed: Observed) -> Iterator[Tensor]:
        fused = _fused(Step(observed.chain[0], None, False), head_fusion)
        for _, read in observed.gradients([]):
            yield (read[:, None].to(fused.dtype) @ fused).squeeze(1)

    return explain_tokens(model, input, target, saliency_layer, relevance, None, True, **options)


@typed
def attention_rollout(
    model: Module,
    input: Input,
    target: Target,
    saliency_layer: Layers = None,
    head_fusion: str = "mean",
    discard_ratio: float = 0.0,
    start_layer: int = 0,
    **options: Unpack[AttentionOptions],
) -> Maps:
    r"""Attention rollout: the product of the attention of all layers, residual connections included.

    .. math:: s_n = q^\top \hat A_L \cdots \hat A_2 \hat A_1, \quad
              \hat A_{ij} = \frac{\bar A_{ij} + \delta_{ij}}{\sum_k \bar A_{ik} + \delta_{ik}}

    with :math:`q` the distribution over the tokens that the score reads, and :math:`\bar A` the heads fused by
    ``head_fusion`` (``'mean'``, ``'max'``, ``'min'``), whose lowest fraction ``discard_ratio`` of entries is set to
    0. (N, 1, h, w), non-negative, the same for every class. Abnar and Zuidema, Quantifying Attention Flow, ACL
    2020. Options and errors: see :func:`~saliency.methods.tokens.explain_tokens`.
    """
    _check_fusion(head_fusion)
    if not is_number(discard_ratio) or not 0 <= discard_ratio < 1:
        raise ValueError(f"discard_ratio={shown(discard_ratio)} is not a valid fraction; expected a number in [0, 1).")

    def transition(step: Step, relevance: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        fused = _discarded(_fused(step, head_fusion), discard_ratio)[:, rows] if discard_ratio else None
        fused = _fused(step, head_fusion, rows) if fused is None else fused
        share = safe_divide(relevance.to(fused.dtype), fused.sum(2) + step.residual)
        return share, (share[:, None] @ fused).squeeze(1)

    def relevance(observed: Observed) -> Iterator[Tensor]:
        steps = [Step(of, None, own) for of, own in zip(observed.chain, observed.residuals(), strict=True)]
        for _, read in observed.gradients([]):
            yield follow(steps, read, transition)

    return explain_tokens(model, input, target, saliency_layer, relevance, start_layer, True, **options)


def _discarded(attention: Tensor, ratio: float) -> Tensor:
    """The attention (N, queries, keys) with the lowest fraction ``ratio`` of each image's entries set to 0."""
    flat = attention.flatten(1)
    lowest = flat.topk(int(flat.shape[1] * ratio), 1, largest=False, sorted=False).indices
    return flat.scatter(1, lowest, 0).view_as(attention)


@typed
def gradient_attention(
    model: Module, input: Input, target: Target, saliency_layer: Layers = None, **options: Unpack[AttentionOptions]
) -> Maps:
    r"""Gradient x attention: the first-order contribution of attending to each token.

    .. math:: s_{nj} = \sum_{h, i} A_{nhij} \, \frac{\partial y}{\partial A_{nhij}}

    of the last layer, or of the last inside ``saliency_layer``. (N, 1, h, w), signed. Serrano and Smith, Is
    Attention Interpretable?, ACL 2019. Options and errors: see :func:`~saliency.methods.tokens.explain_tokens`.
    """

    def relevance(observed: Observed) -> Iterator[Tensor]:
        for (gradient,), _ in observed.gradients([observed.chain[0].edge]):
            step = Step(observed.chain[0], gradient, False)
            yield reduce(torch.add, (torch.mul(*part).sum((1, 2)) for part in parts(step)))

    return explain_tokens(model, input, target, saliency_layer, relevance, None, **options)


@typed
def transformer_attribution(
    model: Module,
    input: Input,
    target: Target,
    saliency_layer: Layers = None,
    start_layer: int = 0,
    **options: Unpack[AttentionOptions],
) -> Maps:
    r"""Transformer attribution: relevance propagated through all layers along the attention that raises the score.

    .. math:: s_n = q^\top (I + \bar A_L) \cdots (I + \bar A_1), \quad
              \bar A = \frac{1}{H} \sum_h \max(0, A_h \odot \frac{\partial y}{\partial A_h})

    with :math:`q` the distribution over the tokens that the score reads: a class token, or all. Where queries
    attend to the tokens of an image, as in DETR, the paper's rules for cross attention apply. (N, 1, h, w),
    non-negative. Chefer et al., Generic Attention-model Explainability, ICCV 2021. Options and errors: see
    :func:`~saliency.methods.tokens.explain_tokens`.
    """

    def transition(step: Step, relevance: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        sent = (relevance[:, None, None].to(a.dtype) @ (a * da).relu_() for a, da in parts(step, rows))
        return relevance, reduce(torch.add, (x.sum((1, 2)) for x in sent)) / step.attention.shape[1]

    def relevance(observed: Observed) -> Iterator[Tensor]:
        chain = observed.chain
        residuals = [] if observed.crosses else observed.residuals()
        for gradients, read in observed.gradients([of.edge for of in chain]):
            if observed.crosses:
                yield follow_queries(observed, gradients, read)
            else:
                yield follow([Step(*of) for of in zip(chain, gradients, residuals, strict=True)], read, transition)

    return explain_tokens(model, input, target, saliency_layer, relevance, start_layer, **options)
