"""Transformer attribution by relevance, against its paper's formula over rules that are written out, in float64."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import saliency
from saliency import rules
from tests.methods.transformers import HEADS, WIDTH, Attention, Queries, Transformer, images, twins

EPS = 1e-3  # large, so that it shows
TARGETS = torch.tensor([[3, 1], [0, 4]])
TABLES = {
    "attn_lrp": rules.attn_lrp(gamma=0, convolution=0, epsilon=0),  # the gradient, in linear layers
    "attn_plus": rules.attn_plus(EPS),
}


def stand_in(value: Tensor, sent: Tensor) -> Tensor:
    """A value, and another one's gradient."""
    return value.detach() + sent - sent.detach()


class ByHand:
    """A network of the test, with operations whose gradients are the modified ones, by a table; or with its own."""

    def __init__(self, model: Transformer, table: str | None) -> None:
        self.model, self.table = model, table
        self.attentions: list[Tensor] = []

    def linear(self, layer: nn.Linear, x: Tensor) -> Tensor:
        y = layer(x)
        if self.table != "attn_plus":
            return y
        weight, bias = layer.weight.detach(), layer.bias.detach()
        above = F.linear(x.clamp(min=0), weight.clamp(min=0), bias.clamp(min=0))
        z = above + F.linear(x.clamp(max=0), weight.clamp(max=0))
        return stand_in(y, z * (y / (z + EPS)).detach())

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        return a @ b if self.table is None else 0.5 * (a @ b.detach() + a.detach() @ b)

    def gelu(self, x: Tensor) -> Tensor:
        return F.gelu(x) if self.table is None else x * (F.gelu(x) / x).detach()

    def norm(self, layer: nn.LayerNorm, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        sd = (centred.square().mean(-1, keepdim=True) + layer.eps).sqrt()
        return centred / (sd if self.table is None else sd.detach()) * layer.weight + layer.bias

    def attend(self, part: Attention, x: Tensor) -> Tensor:
        q, k, v = (self.linear(of, x).unflatten(2, (HEADS, -1)).transpose(1, 2) for of in (part.q, part.k, part.v))
        a = (self.product(q, k.mT) * (WIDTH // HEADS) ** -0.5).softmax(-1)
        a.retain_grad()
        self.attentions.append(a)
        return self.linear(part.out, self.product(a, v).transpose(1, 2).flatten(2))

    def __call__(self, image: Tensor) -> Tensor:
        model = self.model
        x = model.patches(image).flatten(2).transpose(1, 2)
        x = torch.cat([model.extra.expand(len(x), -1, -1), x], 1) + model.position
        for block in model.blocks:
            x = x + self.attend(block.attention, self.norm(block.norm1, x))
            x = x + self.linear(block.mlp[2], self.gelu(self.linear(block.mlp[0], self.norm(block.norm2, x))))
        x = self.norm(model.norm, x)
        return self.linear(model.head, x.mean(1) if model.reads == "mean" else x[:, 0])


def at_attentions(model: Transformer, image: Tensor, target: int, table: str | None) -> tuple[float, list[Tensor]]:
    """A score; of each layer the attention's gradient, or, by a table, relevance."""
    by_hand = ByHand(model, table)
    score = by_hand(image)[0, target]
    torch.testing.assert_close(score, model(image)[0, target])
    score.backward()
    model.zero_grad()
    return score.item(), [(a.grad if table is None else a.detach() * a.grad)[0] for a in by_hand.attentions]


def expected(model: Transformer, image: Tensor, target: int, table: str) -> Tensor:
    """Chefer et al., CVPR 2021, equations 13 and 14, in loops: relevance begins with 1."""
    score, relevances = at_attentions(model, image, target, table)
    _, gradients = at_attentions(model, image, target, None)
    tokens = relevances[0].shape[-1]
    rollout = torch.eye(tokens, dtype=torch.float64)
    for relevance, gradient in zip(relevances, gradients, strict=True):
        step, r, g = torch.eye(tokens, dtype=torch.float64), relevance.tolist(), gradient.tolist()
        for i in range(tokens):
            row = [sum(max(0.0, g[h][i][j] * r[h][i][j] / score) for h in range(HEADS)) for j in range(tokens)]
            step[i] += torch.tensor(row, dtype=torch.float64) / HEADS
        rollout = step @ rollout
    return rollout.mean(0) if model.reads == "mean" else rollout[0]


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize(("depth", "reads"), [(1, "class"), (3, "class"), (2, "mean")])
def test_it_is_the_papers_formula(depth, reads, table):
    """Of one layer and of a chain, for images of two targets each, fused and spelled out."""
    models, x = twins(partial(Transformer, depth=depth, reads=reads)), images()
    columns = [torch.stack([expected(models[1], x[n : n + 1], int(t), table) for t in TARGETS[n]]) for n in range(2)]
    for model in models:
        found = saliency.transformer_attribution(model, x, TARGETS, rules=TABLES[table], reduction=None)
        torch.testing.assert_close(found, torch.stack(columns), rtol=1e-10, atol=1e-14)
        last = saliency.transformer_attribution(model, x, TARGETS[:, 1], rules=TABLES[table], reduction=None)
        torch.testing.assert_close(last, found[:, 1], rtol=1e-12, atol=1e-16)
    assert not torch.allclose(found, saliency.transformer_attribution(models[0], x, TARGETS, reduction=None), rtol=0.01)


@pytest.mark.parametrize(
    "options",
    [{"reads": "two", "registers": 1}, {"reads": "attention"}, {"reads": "class attention"}, {"biased": True}],
)
@pytest.mark.parametrize("preset", ["attn_lrp", "attn_plus"])
def test_fused_and_spelled_out_are_the_same(options, preset):
    fused, spelled = twins(partial(Transformer, **options))
    found, other = (saliency.transformer_attribution(model, images(), 1, rules=preset) for model in (fused, spelled))
    torch.testing.assert_close(found, other, rtol=1e-10, atol=1e-16)
    assert found.min() >= 0
    assert found.abs().max() > 0


def test_a_shared_pass_serves_it_and_others():
    model, x, passes = twins(Transformer)[0], images(), []
    table = rules.attn_lrp()
    shared = saliency.shared_forward(model, x, tables=[table])
    model.register_forward_pre_hook(lambda *args: passes.append(1))
    for target in (1, TARGETS):
        found = saliency.transformer_attribution(model, x, target, rules=table, shared=shared)
        ours = saliency.lrp(model, x, target, rules=table, shared=shared)
        plain = saliency.transformer_attribution(model, x, target, shared=shared)
        assert not passes
        torch.testing.assert_close(found, saliency.transformer_attribution(model, x, target, rules=table))
        torch.testing.assert_close(ours, saliency.lrp(model, x, target, rules=table))
        torch.testing.assert_close(plain, saliency.transformer_attribution(model, x, target))
        passes.clear()


@pytest.mark.parametrize(
    "given",
    [
        "cp",
        "epsilon_plus",
        {**rules.attn_lrp(), F.scaled_dot_product_attention: rules.CP[F.scaled_dot_product_attention]},
    ],
)
def test_rules_to_which_attention_is_a_constant(given):
    with pytest.raises(ValueError, match=r"^rules=.* give no relevance to attention, .*; expected 'attn_plus', .*\.$"):
        saliency.transformer_attribution(twins(Transformer)[0], images(), 1, rules=given)


def test_object_queries_have_no_such_rule():
    with pytest.raises(ValueError, match=r"^model=Queries has cross attention in layer 'across\.0\.attention'"):
        saliency.transformer_attribution(twins(Queries)[0], images(), (0, 2), rules="attn_lrp")
