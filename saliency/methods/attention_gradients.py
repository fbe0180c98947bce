"""Attention gradients: maps of how the score reacts to what tokens attend to, without following it through layers."""

from collections.abc import Iterator, Sequence
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module
from typing_extensions import Unpack

from saliency.engine.attention import Attention, Block
from saliency.engine.call import Input
from saliency.engine.contexts import NullContext
from saliency.engine.gradients import send_gradients
from saliency.engine.layers import Layers
from saliency.engine.maps import safe_divide
from saliency.engine.record import Pass
from saliency.engine.sending import differentiate
from saliency.engine.signatures import Maps, typed
from saliency.engine.site import Site
from saliency.engine.tail import Tail
from saliency.engine.targets import Target
from saliency.methods.chains import Step, parts, refused
from saliency.methods.tokens import AttentionOptions, Observed, explain_tokens


@typed
def legrad(
    model: Module,
    input: Input,
    target: Target,
    saliency_layer: Layers = None,
    start_layer: int = 0,
    **options: Unpack[AttentionOptions],
) -> Maps:
    r"""LeGrad: the attention that would raise the score of each layer's tokens, averaged over layers.

    .. math:: s_{nj} = \frac{1}{L} \sum_l \frac{1}{H T} \sum_{h, i}
              \max(0, \frac{\partial y^l}{\partial A^l_{nhij}})

    with :math:`y^l` the score that the head of the network makes of the tokens behind layer :math:`l`, and :math:`L`
    all layers from ``start_layer`` on. The head is what comes after the last attention among all tokens: class
    attention and attention pooling belong to it. (N, 1, h, w), non-negative. Bousselham et al., LeGrad, 2024.
    Options and errors: see :func:`~saliency.methods.tokens.explain_tokens`.
    """

    def relevance(observed: Observed) -> Iterator[Tensor]:
        observed.residuals()
        layers = [of for of in observed.chain if of.queries == of.keys]
        blocks = [_block_of(of, layers[-1], observed) for of in layers]
        for sent in _of_heads(observed, blocks):
            found = []
            for attention, block, gradient in zip(layers, blocks, sent, strict=True):
                edges = [] if attention.edge is None else [attention.edge]
                gradient = gradient.transpose(0, 1) if block.turned else gradient
                found.append(_raised(attention, *differentiate([(block.edge, gradient)], edges, retain=True)))
            yield torch.stack(found).mean(0)

    return explain_tokens(model, input, target, saliency_layer, relevance, start_layer, **options)


def _block_of(attention: Attention, last: Attention, observed: Observed) -> Block:
    """The layer that an attention belongs to, whose tokens the head takes as those of the last."""
    if attention.keys != last.keys:
        raise refused(observed.call, attention, f"has {attention.keys} tokens, where its head takes {last.keys},")
    if attention.block is None:
        raise refused(
            observed.call, attention, "has no layer of one attention that returns tokens (N, tokens, channels)"
        )
    attention.block.check_unchanged()
    return attention.block


def _of_heads(observed: Observed, blocks: Sequence[Block]) -> Iterator[list[Tensor]]:
    """For each target the gradients at the tokens of all blocks, of what the network's head makes of each of them."""
    call, site = observed.call, Site(blocks[-1].name, blocks[-1].module, "output", 1, seen=[])
    every = []
    for n in range(call.samples):
        sample = torch.tensor([n], device="cpu")
        tail = Tail(site, call.rows(sample), torch.is_grad_enabled())
        tokens = torch.stack([block.tokens[n] for block in blocks]).requires_grad_()
        recorded = Pass(tail(tokens), [[tokens]], NullContext())
        targets = observed.targets.rows(sample.expand(len(blocks)))
        every.append(send_gradients(recorded, targets, [tokens], [], observed.settings))
    for of_samples in zip(*every, strict=True):
        found = [torch.zeros_like(blocks[0].tokens[:1]) if dx is None else dx for (dx,) in of_samples]
        yield list(torch.stack(found, 1).unbind())


def _raised(attention: Attention, gradient: Tensor | None = None) -> Tensor:
    """The positive derivatives by an attention, averaged over heads and queries, (N, keys)."""
    images, heads, queries, keys = attention.shape
    if gradient is None:
        return torch.zeros(images, keys, device=attention.device)
    every = (attention.derivative(gradient, part).relu().sum((1, 2)) for part in attention.heads())
    return reduce(torch.add, every) / (heads * queries)


@typed
def grad_eclip(
    model: Module, input: Input, target: Target, saliency_layer: Layers = None, **options: Unpack[AttentionOptions]
) -> Maps:
    r"""Grad-ECLIP: values weighed by the gradient of what attends to them, and by how alike query and key are.

    .. math:: s_{nj} = \max\{0, \sum_i \lambda_{ij} \sum_c g_{nic} v_{njc}\}, \quad
              \lambda_{ij} = \Phi_j(\cos(q_{ni}, k_{nj}))

    over the queries :math:`i` that the score reads, with :math:`g` the gradient at what the attention returns, all
    heads side by side, and :math:`\Phi` scaling to [0, 1] over the image's tokens; of the last layer, or of the last in
    ``saliency_layer``. (N, 1, h, w), non-negative. Zhao et al., Gradient-based Visual Explanation for CLIP, ICML 2024.
    Options and errors: see :func:`~saliency.methods.tokens.explain_tokens`.
    """

    def relevance(observed: Observed) -> Iterator[Tensor]:
        (attention,) = observed.chain
        alike = _alike(attention, observed)
        for (gradient,), _ in observed.gradients([attention.edge]):
            every = (derivative.sum(1) for _, derivative in parts(Step(attention, gradient, False)))
            yield (alike * reduce(torch.add, every)).sum(1).relu()  # the derivative is g v

    return explain_tokens(model, input, target, saliency_layer, relevance, None, **options)


def _alike(attention: Attention, observed: Observed) -> Tensor:
    """How alike queries and keys are, (N, queries, keys): from 0 to 1 over the tokens of the image."""
    query, key = attention.query, attention.key
    if query is None or key is None:
        raise refused(observed.call, attention, "attends by other means than products of queries and keys")
    group = query.shape[1] // key.shape[1]
    query, key = (x.transpose(1, 2).flatten(2) for x in (query, key.repeat_interleave(group, 1)))
    found = F.normalize(query, dim=-1) @ F.normalize(key, dim=-1).mT
    low, high = torch.aminmax(found[..., observed.cells], dim=-1, keepdim=True)
    return safe_divide(found - low, high - low)
