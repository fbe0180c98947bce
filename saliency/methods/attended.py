"""Attended: the attention of every layer as it is, and whether a map lies on the few tokens with large norms."""

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
from saliency.engine.sending import keeping_copies
from saliency.engine.state import evaluating
from saliency.methods.tokens import no_attention


class AttentionMaps(Sequence[Tensor]):
    """The attention of every layer, (N, heads, queries, keys), in the order in which they run; made when asked for.

    ``names`` are those of the layers. Only what the weights are made of is kept: queries and keys of a fused attention.
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
    """The attention of every layer of a model as it is, whatever it attends among: windows and channels too.

    Rows are queries, columns keys; class tokens and registers are where the model has them. Attention is softmax over
    the keys, with masks and biases; heads that are mixed behind it (talking heads) are so here.
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

    found = keeping_copies(observe)
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
    r"""How much of a map lies on the tokens with outlying norms, over what would if it were spread evenly: (N, K).

    .. math:: \frac{\sum_{u \in O} |s_u| \, / \, \sum_u |s_u|}{|O| / |U|}, \quad
              O = \{u : \|x_u\| > \mathrm{mean} + 4 \, \mathrm{sd}\}

    with :math:`x_u` the activation of ``saliency_layer`` (``None``: the last with a grid), for maps (N, K, h, w) on its
    grid. Transformers without registers keep what is global in a few tokens of the background; a map that is large
    there shows no place. NaN for an image without such tokens; 1 where they are like all others.
    Darcet et al., Vision Transformers Need Registers, ICLR 2024.
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
            f"saliency_map={describe(saliency_map)} is not on the tokens' grid; expected (N, K, h, w) with "
            f"{(len(norms), 'K', *norms.shape[2:])}, as without resize."
        )
    flat = norms.flatten(2)
    rounding = 16 * torch.finfo(flat.dtype).eps * flat.amax(2, keepdim=True)  # equal norms have no outliers
    limit = flat.mean(2, keepdim=True) + deviations * flat.std(2, keepdim=True, correction=0) + rounding
    outlying = (flat > limit).to(flat)
    mass = saliency_map.to(flat).flatten(2).abs()
    share = safe_divide((mass * outlying).sum(2), mass.sum(2))
    return share / outlying.mean(2)
