"""Attention relevance: what of a score's relevance goes to the attention of each layer, beside its gradient there."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module

from saliency.engine.attention import FusedAttention
from saliency.engine.checks import shown
from saliency.engine.maps import safe_divide
from saliency.engine.sending import Sought, differentiate
from saliency.methods.relevance import RelevanceContext, Rules
from saliency.methods.tokens import Observed
from saliency.rules.attention import SharedAttention


class AttentionRelevanceContext(RelevanceContext):
    """The plain backward pass; and, of the same forward pass, :meth:`modified`, by a preset's name or a table.

    Raises ``ValueError`` for rules to which attention is a constant.
    """

    def __init__(self, rules: Rules, model: Module | None = None) -> None:
        super().__init__(rules, model)
        row = self.rules.get(F.scaled_dot_product_attention)
        self.share = row.weights if isinstance(row, SharedAttention) else 0.0
        if not self.share:
            raise ValueError(
                f"rules={shown(rules)} give no relevance to attention, which is a constant to them; expected "
                "'attn_plus', 'attn_lrp', or relevance_rules(..., others=saliency.rules.ATTN_LRP)."
            )

    def send_back(
        self, scores: Tensor, gradient: Tensor, tensors: Sequence[Sought], retain: bool
    ) -> list[Tensor | None]:
        """The plain gradients; the graph is kept for the modified ones."""
        table, self.force.table = self.force.table, {}
        try:
            return differentiate([(scores, gradient)], tensors, True)
        finally:
            self.force.table = table

    def modified(self, scores: Tensor, gradient: Tensor, tensors: Sequence[Sought]) -> list[Tensor | None]:
        """The modified gradients, which the rules send back."""
        return super().send_back(scores, gradient, tensors, True)


def modified_gradients(observed: Observed, gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
    """At each attention, beside its own gradient, that which makes relevance of its weights; ``None`` without rules.

    The score's relevance is 1.
    """
    context, scores, sent = observed.recorded.context, observed.recorded.scores, observed.recorded.sent
    if not isinstance(context, AttentionRelevanceContext) or scores is None or sent is None:
        return [None] * len(gradients)
    samples = observed.call.samples
    score = (scores.detach() * sent).reshape(samples, -1).sum(1, keepdim=True)
    gradient = safe_divide(sent.reshape(samples, -1), score).view_as(sent)
    known = [(at, of) for at, of in enumerate(observed.chain) if gradients[at] is not None]
    sought = [of.edge for _, of in known if of.edge is not None]
    found: list[Tensor | None] = [*gradients]
    for (at, of), modified in zip(known, context.modified(scores, gradient, sought), strict=True):
        share = context.share if isinstance(of, FusedAttention) else 1.0  # at single operations it has been taken
        own = gradients[at] if modified is None else modified
        found[at] = None if own is None else own * (0 if modified is None else share)
    return found
