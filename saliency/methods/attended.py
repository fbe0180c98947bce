"""Attention maps of every layer, unprocessed, and a measure of how much of a map lies on tokens with outlying norms."""

from collections.abc import Mapping, Sequence
from typing import overload

import torch
from torch import Tensor
from torch.nn import Module

from saliency.engine.attending import Attending
from saliency.engine.attention import Attention
from saliency.engine.call import Input, make_call
from saliency.engine.checks import check_maps_type, describe, is_number, shown
from saliency.engine.contexts import NullContext
from saliency.engine.driver import saliency
from saliency.engine.layers import Layer
from saliency.engine.maps import safe_divide
from saliency.engine.record import recording
from saliency.engine.sending import retry_with_copies
from saliency.engine.state import evaluating
from saliency.methods.tokens import no_attention


class AttentionMaps(Sequence[Tensor]):
    """The attention of every layer, (N, heads, queries, keys), in the order of execution; computed on access.

    ``names`` holds the layers' names. Only what determines the weights is stored: for fused attention, queries and
    keys.
    """

    def __init__(self, attentions: Sequence[Attention]) -> None:
        self._attentions = attentions
        self.names = [attention.layer for attention in attentions]

    def __len__(self) -> int:
        return len(self._attentions)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> "AttentionMaps": ...
    def __getitem__(self, index: int | slice) -> "Tensor | AttentionMaps":
        if isinstance(index, slice):
            return AttentionMaps(self._attentions[index])
        return self._attentions[index].weights(slice(None)).clone()


def attention_maps(
    model: Module,
    input: Input,
    *,
    additional_forward_args: object = None,
    forward_kwargs: Mapping[str, object] | None = None,
) -> AttentionMaps:
    """The attention weights of every layer, whatever it attends over: tokens, windows or channels.

    Each is (N, heads, queries, keys), with class tokens and registers where the model puts them: the softmax over
    the keys, masks and biases included. Heads that are mixed after the softmax (talking heads) are returned mixed.
    Raises ``ValueError`` for a model without attention.

    >>> import torch
    >>> layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    >>> maps = attention_maps(layer, torch.rand(1, 5, 8))
    >>> maps.names, maps[0].shape, torch.allclose(maps[0].sum(-1), torch.ones(1, 2, 5))
    (['self_attn'], torch.Size([1, 2, 5, 5]), True)
    """
    call = make_call(model, input, additional_forward_args, forward_kwargs)

    def observe(again: bool) -> list[Attention]:
        attending = Attending(call.samples, copies=again)
        with (
            evaluating(call.model, call.modules),
            recording(call, [], NullContext, grad=False, attending=attending),
        ):
            for attention in attending.found:
                attention.check_unchanged()
        return attending.found

    found = retry_with_copies(observe)
    if not found:
        raise no_attention(call)
    return AttentionMaps(found)


def outlier_tokens(
    model: Module,
    input: Input,
    saliency_map: Tensor,
    saliency_layer: Layer = None,
    *,
    deviations: float = 4.0,
    additional_forward_args: object = None,
    forward_kwargs: Mapping[str, object] | None = None,
) -> Tensor:
    r"""How much of a map lies on tokens with outlying norms, relative to an evenly spread map: (N, K).

    .. math:: \frac{\sum_{u \in O} |s_u| \, / \, \sum_u |s_u|}{|O| / |U|}, \quad
              O = \{u : \|x_u\| > \mathrm{mean} + d \, \mathrm{sd}\}

    for maps (N, K, h, w) on the grid of ``saliency_layer`` (``None``: the last layer with a grid), with its
    activation :math:`x_u` and d = ``deviations``. 1 means that the outliers are like all other tokens; NaN, that an
    image has none. Transformers without registers store global information in a few background tokens, so a map
    that is large there does not localise. Darcet et al., Vision Transformers Need Registers, ICLR 2024.
    """
    check_maps_type("saliency_map", saliency_map)
    if not is_number(deviations):
        raise ValueError(f"deviations={shown(deviations)} is not a number of standard deviations; expected a number.")
    norms = saliency(
        model,
        input,
        None,
        saliency_layer,
        gradient_to_saliency=lambda x: x.norm(dim=1, keepdim=True),
        get_backward_gradient=None,
        additional_forward_args=additional_forward_args,
        forward_kwargs=forward_kwargs,
    )
    if saliency_map.ndim != norms.ndim or saliency_map.shape[2:] != norms.shape[2:] or len(saliency_map) != len(norms):
        raise ValueError(
            f"saliency_map={describe(saliency_map)} is not on the tokens' grid; expected maps of shape "
            f"{(len(norms), 'K', *norms.shape[2:])}, made without resize."
        )
    flat = norms.flatten(2)
    rounding = 16 * torch.finfo(flat.dtype).eps * flat.amax(2, keepdim=True)  # equal norms have no outliers
    limit = flat.mean(2, keepdim=True) + deviations * flat.std(2, keepdim=True, correction=0) + rounding
    outlying = (flat > limit).to(flat)
    mass = saliency_map.to(flat).flatten(2).abs()
    share = safe_divide((mass * outlying).sum(2), mass.sum(2))
    return share / outlying.mean(2)
