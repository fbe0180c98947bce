"""Small transformers of every kind, whose attention is fused or spelled out, and which can show what they attend to."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIZE, GRID = (12, 15), (4, 5)  # of an image, and of its patches of 3 x 3
WIDTH, HEADS = 12, 3


class Attention(nn.Module):
    """Attention of heads: ``F.scaled_dot_product_attention``, or the same with a softmax.

    ``mixes`` lets heads talk behind the softmax; ``bias`` is added to the logits.
    """

    def __init__(self, spelled: bool, mixes: bool = False, bias: Tensor | None = None) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.mix = nn.Linear(HEADS, HEADS) if mixes else None
        self.bias = None if bias is None else nn.Parameter(bias)
        self.spelled, self.drop = spelled, nn.Dropout(0.4)
        self.shown: list[dict[str, Tensor]] | None = None

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        context = x if context is None else context
        parts = ((self.q, x), (self.k, context), (self.v, context))
        q, k, v = (linear(y).unflatten(2, (HEADS, -1)).transpose(1, 2) for linear, y in parts)
        if self.spelled or self.mix is not None:
            logits = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
            a = (logits if self.bias is None else logits + self.bias).softmax(dim=-1)
            if self.mix is not None:
                a = self.mix(a.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            a = self.drop(a)
            if self.shown is not None:
                a.retain_grad()
                self.shown.append({"a": a, "q": q, "k": k})
            out = a @ v
        else:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias)
        return self.out(out.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and a perceptron beside the residual stream; ``context`` is attended to where there is one."""

    def __init__(self, spelled: bool, **options: Any) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = Attention(spelled, **options)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 16), nn.GELU(), nn.Linear(16, WIDTH))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        x = x + self.attention(self.norm1(x), context)
        return x + self.mlp(self.norm2(x))


class ClassBlock(Block):
    """Class attention: the first token attends to all, and is alone changed."""

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        y = self.norm1(x)
        first = x[:, :1] + self.attention(y[:, :1], y)
        return torch.cat([first + self.mlp(self.norm2(first)), x[:, 1:]], 1)


class Transformer(nn.Module):
    """Patches of an image, extra tokens in front, blocks, and a way to read the scores out.

    ``reads`` is 'class', 'two' (class and distillation tokens), 'mean', 'attention' (a query that is learnt) or
    'class attention' (two blocks of it, the heads of the others talking to each other).
    """

    def __init__(self, spelled: bool, reads: str = "class", registers: int = 0, depth: int = 3, biased: bool = False):
        super().__init__()
        self.reads = reads
        self.patches = nn.Conv2d(3, WIDTH, 3, stride=3)
        self.extra = nn.Parameter(torch.randn(1, {"class": 1, "two": 2}.get(reads, 0) + registers, WIDTH))
        tokens = self.extra.shape[1] + GRID[0] * GRID[1]
        self.position = nn.Parameter(torch.randn(1, tokens, WIDTH))
        options = [
            {"bias": torch.randn(HEADS, tokens, tokens) if biased else None, "mixes": reads == "class attention"}
            for _ in range(depth)
        ]
        self.blocks = nn.ModuleList(Block(spelled, **of) for of in options)
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.last = nn.ModuleList(ClassBlock(spelled) for _ in range(2 if reads == "class attention" else 0))
        self.pool = Attention(spelled) if reads == "attention" else None
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.extra.expand(len(x), -1, -1), x], 1) + self.position
        for block in self.blocks:
            x = block(x)
        return self.scores(x)

    def scores(self, x: Tensor) -> Tensor:
        """What is made of the tokens behind the last block."""
        token = self.token.expand(len(x), -1, -1)
        if self.reads == "attention":
            return self.head(self.norm(self.pool(token, x))[:, 0])
        if self.reads == "class attention":
            x = torch.cat([token, x], 1)
            for block in self.last:
                x = block(x)
        x = self.norm(x)
        if self.reads == "mean":
            x = x.mean(1)
        elif self.reads == "two":
            x = x[:, :2].mean(1)
        else:
            x = x[:, 0]
        return self.head(x)


class Queries(nn.Module):
    """Two encoder blocks of an image's tokens, and object queries that attend to each other and to those: (N, 4, 5)."""

    def __init__(self, spelled: bool) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 3, stride=3)
        self.position = nn.Parameter(torch.randn(1, GRID[0] * GRID[1], WIDTH))
        self.encoder = nn.ModuleList(Block(spelled) for _ in range(2))
        self.queries = nn.Parameter(torch.randn(1, 4, WIDTH))
        self.among, self.across = (nn.ModuleList(Block(spelled) for _ in range(2)) for _ in range(2))
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.position
        for block in self.encoder:
            x = block(x)
        queries = self.queries.expand(len(x), -1, -1)
        for among, across in zip(self.among, self.across, strict=True):
            queries = across(among(queries), x)
        return self.head(queries)


def twins(build: Callable[[bool], nn.Module]) -> tuple[nn.Module, nn.Module]:
    """The same network with fused and with spelled-out attention, in float64."""
    made = []
    for spelled in (False, True):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            made.append(build(spelled).double().eval())
    for parameter, other in zip(*(model.parameters() for model in made), strict=True):
        assert torch.equal(parameter, other)
    return made[0], made[1]


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, *SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def shown(model: nn.Module, score: Callable[[nn.Module], Tensor]) -> list[dict[str, Tensor]]:
    """What a spelled-out network attends to, of one image: a (heads, queries, keys), its gradient da, and q and k."""
    parts = [part for part in model.modules() if isinstance(part, Attention)]
    seen: list[dict[str, Tensor]] = []
    for part in parts:
        part.shown = seen
    score(model).backward()
    for part in parts:
        part.shown = None
    model.zero_grad()
    found = []
    for part in seen:
        gradient = torch.zeros_like(part["a"]) if part["a"].grad is None else part["a"].grad
        found.append({"da": gradient[0], **{name: tensor.detach()[0] for name, tensor in part.items()}})
    return found
