"""Attentions that are found in a pass: their weights and derivatives, however they are spelled, and what feeds what."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saliency.engine.attending import Attending
from saliency.engine.attention import Attention
from saliency.engine.graph import node_of
from saliency.engine.streams import Streams
from tests.cases import Net

N, H, T, S, D = 2, 4, 5, 6, 3  # images, heads, queries, keys, channels


def qkv(heads: int = H) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    shapes = ((N, H, T, D), (N, heads, S, D), (N, heads, S, D))
    return tuple(torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)


def plain(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | float = 0.0, scale: float = D**-0.5) -> tuple[Tensor, Tensor]:
    a = (q @ k.mT * scale + bias).softmax(-1)
    return a, a @ v


MASK = torch.rand(N, 1, T, S, generator=torch.Generator().manual_seed(1)) > 0.3
BIAS = torch.randn(H, T, S, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
CAUSAL = torch.ones(T, S, dtype=torch.bool).tril()


def as_bias(mask: Tensor) -> Tensor:
    return torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, -math.inf)


def _rows(x: Tensor) -> Tensor:
    return x.flatten(0, 1)


# name -> an attention of q, k and v, and its bias
SPELLINGS: dict[str, tuple[Callable[[Tensor, Tensor, Tensor], Tensor], Tensor | float]] = {
    "fused": (lambda q, k, v: F.scaled_dot_product_attention(q, k, v), 0.0),
    "mask": (lambda q, k, v: F.scaled_dot_product_attention(q, k, v, MASK), as_bias(MASK)),
    "bias": (lambda q, k, v: F.scaled_dot_product_attention(query=q, key=k, value=v, attn_mask=BIAS), BIAS),
    "causal": (lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), as_bias(CAUSAL)),
    "scale": (lambda q, k, v: F.scaled_dot_product_attention(q * 2, k, v, scale=D**-0.5 / 2), 0.0),
    "rows": (lambda q, k, v: F.scaled_dot_product_attention(_rows(q), _rows(k), _rows(v)).unflatten(0, (N, H)), 0.0),
    "@": (lambda q, k, v: ((q @ k.transpose(-2, -1)) * D**-0.5).softmax(dim=-1) @ v, 0.0),
    "bmm": (
        lambda q, k, v: torch.bmm(F.softmax(torch.bmm(_rows(q) * D**-0.5, _rows(k).mT), -1), _rows(v)).view(N, H, T, D),
        0.0,
    ),
    "in place": (lambda q, k, v: torch.matmul(torch.softmax(q.matmul(k.mT).mul_(D**-0.5).add_(BIAS), 3), v), BIAS),
    "baddbmm": (
        lambda q, k, v: torch.bmm(
            torch.baddbmm(BIAS.repeat(N, 1, 1), _rows(q) * D**-0.5, _rows(k).mT).softmax(-1), _rows(v)
        ).view(N, H, T, D),
        BIAS,
    ),
    "einsum": (
        lambda q, k, v: torch.einsum(
            "bhij, bjhd -> bihd",
            (torch.einsum("bhid,bhjd->bhij", q, k) * D**-0.5).softmax(-1).to(q.dtype),
            v.transpose(1, 2),
        ).transpose(1, 2),
        0.0,
    ),
    "values first": (lambda q, k, v: (v.mT @ (q @ k.mT * D**-0.5).softmax(-1).permute(0, 1, 3, 2)).mT, 0.0),
    "dropped": (lambda q, k, v: F.dropout((q @ k.mT / math.sqrt(D)).softmax(-1), 0.5, False).contiguous() @ v, 0.0),
}


def found_in(function: Callable[..., Tensor], *args: Tensor) -> tuple[Tensor, list[Attention]]:
    with Attending(N) as attending:
        output = function(*args)
    return output, attending.found


@pytest.mark.parametrize("name", SPELLINGS)
def test_weights_and_derivatives(name):
    """A and dA, of all heads and of some, of all queries and of some; the result is what it was, bit for bit."""
    function, bias = SPELLINGS[name]
    q, k, v = qkv()
    output, (attention,) = found_in(function, q, k, v)
    assert torch.equal(output, function(q, k, v))
    assert attention.shape == (N, H, T, S)
    g = torch.randn_like(output)
    a, result = plain(q, k, v, bias)
    torch.testing.assert_close(output, result)
    (da,) = torch.autograd.grad(result, a, g)
    (at_edge,) = torch.autograd.grad(output, [attention.edge], g, retain_graph=True)
    for heads, rows in ((slice(None), slice(None)), (slice(1, 3), torch.tensor([0, 4]))):
        found = attention.weights(heads, rows), attention.derivative(at_edge, heads, rows)
        for mine, wanted in zip(found, (a, da), strict=True):
            torch.testing.assert_close(mine, wanted.detach()[:, heads][:, :, rows], rtol=1e-10, atol=1e-12)
    scale = 2 if name == "scale" else 1
    cosine = F.cosine_similarity(attention.query, q.detach() * scale, dim=-1)
    torch.testing.assert_close(cosine, torch.ones_like(cosine))
    torch.testing.assert_close(attention.key, k.detach())
    torch.testing.assert_close(attention.value, v.detach())


@pytest.mark.parametrize("groups", [1, 2])
def test_heads_that_share_keys(groups):
    q, k, v = qkv(groups)
    output, (attention,) = found_in(lambda: F.scaled_dot_product_attention(q, k, v, enable_gqa=True))
    a, result = plain(q, *(x.repeat_interleave(H // groups, 1) for x in (k, v)))
    torch.testing.assert_close(output, result)
    g = torch.randn_like(output)
    (da,) = torch.autograd.grad(result, a, g)
    (at_edge,) = torch.autograd.grad(output, [attention.edge], g)
    torch.testing.assert_close(attention.weights(slice(1, 4)), a[:, 1:4].detach())
    torch.testing.assert_close(attention.derivative(at_edge, slice(1, 4)), da[:, 1:4])


def test_who_may_attend_to_nobody_does_not():
    q, k, v = qkv()
    mask = MASK.clone()
    mask[0, 0, 2] = False
    _, (attention,) = found_in(lambda: F.scaled_dot_product_attention(q, k, v, mask))
    assert attention.weights(slice(None))[0, :, 2].eq(0).all()


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_inside_of_multi_head_attention(need_weights, batch_first):
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(12, H, batch_first=batch_first).double().eval()
    x, y = torch.randn(N, T, 12, dtype=torch.float64, requires_grad=True), torch.randn(N, S, 12, dtype=torch.float64)
    given = (x, y, y) if batch_first else tuple(z.transpose(0, 1) for z in (x, y, y))
    expected, weights = layer(*given, average_attn_weights=False)
    (output, _), (attention,) = found_in(lambda: layer(*given, need_weights=need_weights))
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(attention.weights(slice(None)), weights.detach())
    assert torch.equal(output, layer(*given, need_weights=need_weights)[0])


def test_the_gradient_is_that_of_what_was_returned_before_it_is_overwritten():
    """After ``o *= 3`` the gradient at ``o`` is another one."""
    q, k, v = qkv()

    def tripled() -> Tensor:
        output = F.scaled_dot_product_attention(q, k, v)
        output *= 3
        return output

    output, (attention,) = found_in(tripled)
    a, result = plain(q, k, v)
    (da,) = torch.autograd.grad(3 * result, a, torch.ones_like(result))
    (at_edge,) = torch.autograd.grad(output, [attention.edge], torch.ones_like(output))
    torch.testing.assert_close(attention.derivative(at_edge, slice(None)), da)


def test_what_is_overwritten_afterwards_is_noticed():
    q, k, v = qkv()

    def forward() -> Tensor:
        keys = k * 1
        output = F.scaled_dot_product_attention(q, keys, v)
        with torch.no_grad():
            keys.mul_(2)
        return output

    _, (attention,) = found_in(forward)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        attention.check_unchanged()
    with Attending(N, copies=True) as attending:
        forward()
    attending.found[0].check_unchanged()
    torch.testing.assert_close(attending.found[0].weights(slice(None)), plain(q, k, v)[0].detach())


@pytest.mark.parametrize(
    "function",
    [
        lambda q, k, v: (q @ k.mT) @ v,  # linear
        lambda q, k, v: q @ (k.softmax(-2).mT @ v),  # over the keys' tokens
        lambda q, k, v: (q * v[:, :, :T].softmax(-1)).sum(-1, keepdim=True) * k[:, :, :T],  # a gate
        lambda q, k, v: q.flatten(1).softmax(-1) @ torch.ones(q[0].numel(), 2, dtype=q.dtype),  # of classes
    ],
)
def test_what_is_no_attention(function):
    assert found_in(function, *qkv())[1] == []


def test_layers_blocks_and_grids():
    """The name of the innermost module; the largest module with no other attention; what the pass has shown."""
    model = Net(
        lambda s, x: s.body(s.patches(x).flatten(2).mT).mean(1),
        patches=nn.Conv2d(3, 8, 4, 4),
        body=nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 9, batch_first=True), 2, enable_nested_tensor=False
        ),
    )
    x = torch.randn(N, 3, 8, 12, requires_grad=True)
    attending = Attending(N)
    with attending.around(model), attending, attending.watch:
        output = model(x)
    assert torch.equal(output, model(x))
    assert [attention.layer for attention in attending.found] == [f"body.layers.{i}.self_attn" for i in (0, 1)]
    assert [attention.block.name for attention in attending.found] == [f"body.layers.{i}" for i in (0, 1)]
    assert [attention.seen[-1].sides for attention in attending.found] == [(2, 3)] * 2
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_streams_tell_self_attention_from_cross_attention():
    """An encoder, a decoder of as many queries, and a text that the score depends on, which has seen no image."""
    torch.manual_seed(0)
    image, queries, text = (torch.randn(N, T, 8) for _ in range(3))
    weight = nn.Parameter(torch.ones(1))
    image.requires_grad_()

    def attend(x: Tensor, y: Tensor) -> Tensor:
        return x + F.scaled_dot_product_attention(x[:, None] * weight, y[:, None] * weight, y[:, None])[:, 0]

    with Attending(N) as attending:
        tokens = attend(attend(image, image), attend(image, image))  # one more encoder layer: 0, 1, 2
        words = attend(text, text)  # 3
        found = attend(queries, queries)  # 4
        found = attend(found, tokens)  # 5
        found = attend(attend(found, found), tokens)  # 6, 7
        aside = attend(image, image)  # 8
    streams = Streams(attending.found, [node_of(image)])
    score = (found * words).sum()
    assert aside.requires_grad
    assert streams.of([node_of(score)]) == [0, 1, 2, 4, 5, 6, 7]
    assert [at for at in range(9) if streams.is_cross(at)] == [2, 5, 7]
    assert streams.behind(5) == streams.behind(7) == {0, 1, 2}
