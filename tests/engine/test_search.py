"""The search for the layer to explain: it asks the user's own target, and takes what is a map."""

import gc
import threading
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import saliency
from saliency import find_layer
from saliency.engine import search
from saliency.engine.call import make_call
from saliency.engine.search import found_layer
from saliency.engine.site import make_site
from tests.cases import Net

IMAGE = (1, 3, 64, 64)


class Lambda(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build()


def image(*shape: int) -> Tensor:
    return torch.rand(shape or IMAGE, generator=torch.Generator().manual_seed(1))


def tokens(net: nn.Module, x: Tensor) -> Tensor:
    return net.norm(net.embed(x).flatten(2).mT)


def heads(x: Tensor) -> Tensor:
    return x.view(1, -1, 4, 16).transpose(1, 2)


def patches(**more: nn.Module) -> dict[str, nn.Module]:
    """8 x 8 patches of 8 x 8 pixels, 64 features, two classes."""
    return {"embed": nn.Conv2d(3, 64, 8, 8), "norm": nn.LayerNorm(64), "fc": nn.Linear(64, 2), **more}


# --- pools, and channels that are pooled ----------------------------------------------------------------------------


def one_pool(pool: nn.Module, features: int = 256) -> nn.Module:
    return Net(
        lambda s, x: s.fc(s.pool(s.conv(x).relu().flatten(2)).flatten(1)),
        conv=nn.Conv2d(3, 256, 16, 16),
        pool=pool,
        fc=nn.Linear(features, 5),
    )


def flattened(channels: int) -> nn.Module:
    """nn.Flatten(2) returns channels of 16 cells: not tokens of 4 x 4, or 8 x 8."""
    pool = [nn.Flatten(2), nn.AdaptiveAvgPool1d(1), nn.Flatten()]
    return nn.Sequential(nn.Conv2d(3, channels, 16, 16), *pool, nn.Linear(channels, 3)).eval()


POOLED = {
    "1-D average": lambda: one_pool(nn.AdaptiveAvgPool1d(1)),
    "1-D maximum": lambda: one_pool(nn.AdaptiveMaxPool1d(1)),
    "to several cells": lambda: one_pool(nn.AdaptiveAvgPool1d(4), 1024),
    "own mean over cells": lambda: one_pool(Lambda(lambda x: x.mean(2, keepdim=True))),
    "function in a module": lambda: one_pool(Lambda(lambda x: F.adaptive_avg_pool1d(x, 4)), 1024),
}


@pytest.mark.parametrize("name", POOLED)
def test_pooled_channels_are_no_tokens(name):
    assert find_layer(seeded(POOLED[name]), image(), target=1) == "conv"


@pytest.mark.parametrize("channels", [16, 17, 64])
def test_flattened_channels_are_no_tokens(channels):
    assert find_layer(seeded(partial(flattened, channels)), image(), target=1) == "0"


def test_single_positions_are_no_map():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 5, 1), nn.Tanh(), nn.Flatten())
    assert find_layer(net, image(), target=1) == "0"


@pytest.mark.parametrize("pool", [nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool1d])
def test_adaptive_pools_of_one_dimension(pool):
    net = nn.Sequential(nn.Conv1d(1, 4, 3, 2), nn.ReLU(), pool(4), nn.Flatten(), nn.Linear(16, 3))
    assert find_layer(net, image(1, 1, 40), target=1) == "1"


@pytest.mark.parametrize("pool", [nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool3d])
def test_adaptive_pools_of_three_dimensions(pool):
    net = nn.Sequential(nn.Conv3d(1, 4, 3, 2), nn.ReLU(), pool(2), nn.Flatten(), nn.Linear(32, 3))
    assert find_layer(net, image(1, 1, 9, 9, 9), target=1) == "1"


class Adapted(nn.Module):
    """A linear layer with a low-rank one beside it, behind a dropout of its own, as adapters are."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer, self.dropout = layer, nn.Dropout(0.1)
        self.down, self.up = nn.Linear(layer.in_features, 2), nn.Linear(2, layer.out_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.up(self.down(self.dropout(x)))


class Attention(nn.Module):
    def __init__(self, adapted: bool) -> None:
        super().__init__()
        for name in ("query", "key", "value"):
            layer = nn.Linear(6, 6)
            self.add_module(name, Adapted(layer) if adapted else layer)

    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(self.query(x), self.key(x), self.value(x))


@pytest.mark.parametrize("adapted", [False, True])
def test_adapters_of_an_attention_are_no_layers(adapted):
    """Nor is the dropout in them: it returns what the normalisation has returned, of which it is only a part."""

    def forward(s: Net, x: Tensor) -> Tensor:
        x = s.patches(x).flatten(2).mT
        x = torch.cat([torch.zeros(len(x), 1, 6), x], 1)
        return s.head((x + s.attention(s.norm(x)))[:, 0])

    model = Net(
        forward,
        patches=nn.Conv2d(3, 6, 4, 4),
        norm=nn.LayerNorm(6),
        attention=Attention(adapted),
        head=nn.Linear(6, 3),
    )
    assert find_layer(model, torch.rand(1, 3, 16, 16), target=1) == "norm"


def test_a_dropout_behind_an_activation_that_is_used_again():
    """What the activation returned as a map is known by its last call alone; the dropout behind it is the layer."""

    def forward(s: Net, x: Tensor) -> Tensor:
        x = s.drop(s.act(s.conv(x)))
        return s.head(s.act(s.fc(x.mean((2, 3)))))

    parts = {"conv": nn.Conv2d(3, 6, 3), "act": nn.ReLU(), "drop": nn.Dropout2d(), "fc": nn.Linear(6, 5)}
    model = Net(forward, **parts, head=nn.Linear(5, 3))
    assert find_layer(model, torch.rand(1, 3, 9, 9), target=1) == "drop"


def test_a_pool_hidden_in_a_module_is_one_too():
    class Pool(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.adaptive_avg_pool2d(x, 2)

    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), Pool(), nn.Flatten(), nn.Linear(16, 3))
    assert find_layer(net, image(), target=1) == "1"


# --- attention ------------------------------------------------------------------------------------------------------


def attention_pool(s: Net, x: Tensor) -> Tensor:
    """One query, heads: (N, 4, 1, 16), (N, 4, 64, 16), (N, 4, 1, 64)."""
    t = tokens(s, x)
    q, k = s.q_norm(heads(t[:, :1])), s.k_norm(heads(s.k(t)))
    return s.fc((s.drop((q @ k.mT).softmax(-1)) @ heads(t)).flatten(1))


def self_attention(s: Net, x: Tensor) -> Tensor:
    """(N, 4, 64, 64), as the image is 64 x 64; the class is read from the mean token."""
    t = tokens(s, x)
    q, k, v = map(heads, (s.q(t), s.k(t), t))
    return s.fc((s.softmax(s.scores(q @ k.mT)) @ v).transpose(1, 2).flatten(2).mean(1))


def one_head(s: Net, x: Tensor) -> Tensor:
    """(N, 64, 64) with 64 features: as many as there are tokens."""
    t = tokens(s, x)
    return s.fc((s.softmax(s.q(t) @ s.k(t).mT) @ t).mean(1))


def talking_heads(s: Net, x: Tensor) -> Tensor:
    """(N, 64, 64, 4): heads stand last, and are mixed by a layer."""
    t = tokens(s, x)
    weights = (heads(s.q(t)) @ heads(s.k(t)).mT).softmax(-1)
    weights = s.mix(weights.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return s.fc((weights @ heads(t)).transpose(1, 2).flatten(2).mean(1))


def gated(s: Net, x: Tensor) -> Tensor:
    """(N, 64, 1): one weight a token."""
    t = tokens(s, x)
    return s.fc((s.softmax(s.gate(t)) * t).sum(1))


def gated_by_a_function(s: Net, x: Tensor) -> Tensor:
    """(N, 64, 1), which no softmax has made."""
    t = tokens(s, x)
    return s.fc((s.gate(t) * t).sum(1))


def one_head_and_a_class_token(s: Net, x: Tensor) -> Tensor:
    """(N, 65, 65)."""
    t = tokens(s, x)
    t = torch.cat([t.mean(1, keepdim=True), t], 1)
    return s.fc((s.softmax(t @ t.mT) @ t).mean(1))


def tokens_of_functions(s: Net, x: Tensor) -> Tensor:
    """No module returns tokens: only the heads (N, 4, 64, 16) pass through one."""
    t = heads(s.embed(x).flatten(2).mT)
    return s.fc(s.k_norm(t).transpose(1, 2).flatten(2).mean(1))


ATTENTION = {
    "pool": ("norm", attention_pool, {"q_norm": nn.Identity(), "k_norm": nn.Identity(), "drop": nn.Dropout(0.0)}),
    "self": ("norm", self_attention, {"scores": nn.Identity(), "softmax": nn.Softmax(-1), "q": nn.Linear(64, 64)}),
    "one head": ("norm", one_head, {"softmax": nn.Softmax(-1), "q": nn.Linear(64, 64)}),
    "talking": ("norm", talking_heads, {"mix": nn.Linear(4, 4), "q": nn.Linear(64, 64)}),
    "gate": ("norm", gated, {"softmax": nn.Softmax(1), "gate": nn.Linear(64, 1)}),
    "gate of a function": ("norm", gated_by_a_function, {"gate": Lambda(lambda t: t.mean(2, keepdim=True).sigmoid())}),
    "one head and a class token": ("norm", one_head_and_a_class_token, {"softmax": nn.Softmax(-1)}),
    "functions": ("embed", tokens_of_functions, {"k_norm": nn.LayerNorm(16)}),
}


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", ATTENTION)
def test_attention_is_no_map(name, frozen):
    expected, function, parts = ATTENTION[name]
    net = seeded(lambda: Net(function, **patches(**parts, k=nn.Linear(64, 64)))).requires_grad_(not frozen)
    assert find_layer(net, image(), target=1) == expected


def test_tokens_behind_attention_are_a_map():
    def block(s: Net, x: Tensor) -> Tensor:
        t = tokens(s, x)
        t = t + (heads(t) @ heads(t).mT).softmax(-1).matmul(heads(t)).transpose(1, 2).flatten(2)
        return s.fc(s.last(t).mean(1))

    assert find_layer(Net(block, **patches(last=nn.LayerNorm(64))), image(), target=1) == "last"


def test_the_class_token_alone_is_no_map():
    def classify(s: Net, x: Tensor) -> Tensor:
        t = tokens(s, x)
        t = s.first(torch.cat([t.mean(1, keepdim=True), t], 1))
        t = t + (heads(t) @ heads(t).mT).softmax(-1).matmul(heads(t)).transpose(1, 2).flatten(2)
        return s.fc(s.last(t)[:, 0])

    net = Net(classify, **patches(first=nn.LayerNorm(64), last=nn.LayerNorm(64)))
    assert find_layer(net, image(), target=1) == "first"


# --- queries and anchors --------------------------------------------------------------------------------------------


def detector(queries: int) -> nn.Module:
    """Queries ask a map of 7 x 7 cells; 100 of them could be read as 10 x 10, 49 as 7 x 7."""
    return Net(
        lambda s, x: {"logits": s.cls(s.norm(s.dec(s.q.weight[None], s.bb(x).flatten(2).mT)))},
        bb=nn.Conv2d(3, 32, 32, 32),
        q=nn.Embedding(queries, 32),
        dec=nn.TransformerDecoderLayer(32, 2, 32, batch_first=True),
        norm=nn.LayerNorm(32),
        cls=nn.Linear(32, 5),
    )


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("queries", [100, 64, 50, 49])
def test_queries_are_no_tokens(queries, frozen):
    net = seeded(partial(detector, queries)).requires_grad_(not frozen)
    for target in ((3, 2), lambda output: output["logits"][:, :, 2].mean(1)):
        assert find_layer(net, image(1, 3, 224, 224), target=target) == "bb"


@pytest.mark.parametrize("frozen", [False, True])
def test_positions_make_no_queries_of_tokens(frozen):
    """As many positions as tokens pass through modules of their own, and know nothing of the image."""

    def positioned(s: Net, x: Tensor) -> Tensor:
        positions = s.drop(s.mix(s.table(torch.arange(64)[None])))
        return s.fc(s.norm(s.embed(x).flatten(2).mT + positions).mean(1))

    more = {"table": nn.Embedding(64, 64), "mix": nn.LayerNorm(64), "drop": nn.Dropout()}
    net = Net(positioned, **patches(**more)).requires_grad_(not frozen)
    assert find_layer(net, image(), target=1) == "norm"


@pytest.mark.parametrize("anchors", [9, 4, 16])
def test_anchors_are_no_tokens(anchors):
    """(N, cells * anchors, 5) of 4 x 4 cells: 4 and 16 anchors a cell could be read as 8 x 8 and 16 x 16."""
    net = Net(
        lambda s, x: s.anchors(s.head(s.bb(x).relu()))[:, :, 4].mean(1, keepdim=True),
        bb=nn.Conv2d(3, 32, 16, 16),
        head=nn.Conv2d(32, 5 * anchors, 1),
        anchors=Lambda(lambda x: x.view(len(x), 5, -1).mT.sigmoid()),
    )
    assert find_layer(net, image(), target=0) == "head"


# --- grids ----------------------------------------------------------------------------------------------------------


def test_a_small_map_is_enlarged():
    """16 cells in the middle of a U-Net do not make attention of the 16 x 16 behind it."""
    net = Net(
        lambda s, x: s.head(s.up(s.down(x)).relu()).mean((2, 3)) ** 2,
        down=nn.Conv2d(3, 4, 16, 16),
        up=nn.ConvTranspose2d(4, 4, 4, 4),
        head=nn.Conv2d(4, 3, 1),
    )
    assert find_layer(net, image(), target=1) == "head"


def test_tokens_that_are_merged_and_rounded_up():
    """7 x 7 patches, then 4 x 4."""

    def merge(s: Net, x: Tensor) -> Tensor:
        x = F.avg_pool2d(s.embed(x), 2, ceil_mode=True)
        return s.fc(s.norm(x.flatten(2).mT).mean(1))

    net = Net(merge, embed=nn.Conv2d(3, 64, 16, 16), norm=nn.LayerNorm(64), fc=nn.Linear(64, 2))
    assert find_layer(net, image(1, 3, 112, 112), target=1) == "norm"


def test_a_layer_that_the_driver_could_not_read_is_left_out():
    """(N, 8, 8, 8) behind a layer normalisation: channels first or last?"""
    net = Net(
        lambda s, x: s.fc(s.norm(s.conv(x).movedim(1, -1)).mean((1, 2))),
        conv=nn.Conv2d(3, 8, 1),
        norm=nn.LayerNorm(8),
        fc=nn.Linear(8, 2),
    )
    assert find_layer(net, image(1, 3, 8, 8), target=1) == "conv"
    assert saliency.grad_cam(net, image(1, 3, 8, 8), 1).shape == (1, 1, 8, 8)


def test_a_layer_that_folds_windows_into_the_batch_is_left_out():
    net = Net(
        lambda s, x: s.fc(torch.cat(s.inside(torch.cat(s.conv(x).chunk(2, 3))).mean((2, 3)).chunk(2), 1)),
        conv=nn.Conv2d(3, 4, 1),
        inside=nn.Conv2d(4, 4, 1),
        fc=nn.Linear(8, 2),
    )
    assert find_layer(net, image(), target=1) == "conv"


def test_a_gradient_at_one_cell_is_zero_almost_everywhere():
    net = Net(lambda s, x: s.last(s.first(x)).tanh(), first=nn.Conv2d(3, 4, 8, 8), last=nn.Conv2d(4, 2, 5, padding=2))
    assert find_layer(net, image(), target=(1, 3, 3)) == "first"
    assert find_layer(net, image(), target=1) == "last"


# --- several tensors, several heads ---------------------------------------------------------------------------------


def stages(collect: Callable[[list[Tensor]], Any], read: Callable[[Any], Tensor]) -> nn.Module:
    def backbone(s: Net, x: Tensor) -> Any:
        first = s.a(x).relu()
        return collect([first, s.b(first).relu()])

    two = Net(backbone, a=nn.Conv2d(3, 4, 3, 2), b=nn.Conv2d(4, 8, 3, 2))
    return Net(lambda s, x: s.fc(read(s.bb(x)).mean((2, 3))), bb=two, fc=nn.LazyLinear(2))


@pytest.mark.parametrize(
    ("collect", "read", "expected"),
    [
        (tuple, lambda found: found[1], "bb.b"),
        (list, lambda found: found[-1], "bb.b"),
        (lambda found: {"low": found[0], "high": found[1]}, lambda found: found["high"], "bb.b"),
        (tuple, lambda found: found[0], "bb.a"),
    ],
)
def test_a_backbone_that_returns_its_stages(collect, read, expected):
    net = stages(collect, read)
    net(image())
    assert find_layer(net, image(), target=1) == expected


def two_heads(s: Net, x: Tensor) -> tuple[Tensor, Tensor]:
    return s.mask(s.bb(x)), s.fc(s.bb(x).mean((2, 3)))


def test_the_target_asks_the_second_head():
    net = Net(two_heads, bb=nn.Conv2d(3, 8, 3, 2), mask=nn.Conv2d(8, 1, 1), fc=nn.Linear(8, 2))
    assert find_layer(net, image(), target=lambda output: output[1][:, 1]) == "bb"


def test_each_target_finds_its_own_branch():
    net = Net(
        lambda s, x: torch.cat([s.left(s.stem(x)).mean((2, 3)), s.right(s.stem(x).relu()).mean((2, 3))], 1),
        stem=nn.Conv2d(3, 8, 3),
        left=nn.Conv2d(8, 2, 3, 2),
        right=nn.Conv2d(8, 2, 3, 3),
    )
    assert [find_layer(net, image(), target=target) for target in range(4)] == ["left", "left", "right", "right"]
    assert find_layer(net, image(), target=torch.tensor([[0, 1]])) == "left"
    assert find_layer(net, image(), target=torch.tensor([[1.0, 0, 0, 0]])) == "left"
    assert find_layer(net, image(), target=lambda output: output[:, 0] * 2) == "left"


def test_the_target_of_every_kind_and_of_a_batch():
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 31 * 31, 3), nn.Softmax(1))
    labels, everything = torch.tensor([2, 0, 1]), torch.arange(3).expand(3, 3)
    kinds = [1, [2, 0, 1], labels, everything, torch.rand(3, 3), (1,), [(2,), (0,), (1,)], None]
    for target in [*kinds, lambda output: output[torch.arange(3), labels]]:
        assert find_layer(net, image(3, 3, 64, 64), target=target) == "1"


@pytest.mark.parametrize("target", [3, -1, "cat", [0, 1], (0, 0, 0), lambda output: output[0, 0]])
def test_a_target_that_does_not_fit_is_named(target):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 62 * 62, 3))
    with pytest.raises(ValueError, match=r"^target="):
        find_layer(net, image(), target=target)


# --- the score itself -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "finish",
    [
        lambda x, size: F.interpolate(x, size),
        lambda x, size: F.interpolate(x, size, mode="bilinear"),
        lambda x, size: x,
        lambda x, size: F.pad(x.movedim(1, -1), (0, 1))[:, 1:, :, :4].movedim(-1, 1),
        lambda x, size: torch.cat([x, x.flip(1)], 1),
    ],
)
def test_the_score_itself_is_no_layer(finish):
    net = Net(
        lambda s, x: {"out": finish(s.head(s.enc(x).relu()), x.shape[2:])},
        enc=nn.Conv2d(3, 8, 3, 2, 1),
        head=nn.Sequential(nn.Conv2d(8, 4, 1)),
    )
    for target in (1, None, lambda output: output["out"][:, 1, 2:9].mean((1, 2))):
        assert find_layer(seeded(lambda: net), image(), target=target) == "enc"


def test_the_mean_of_a_map_and_a_function_of_it_are_no_copies():
    def build(finish: Callable[[Tensor], Tensor]) -> nn.Module:
        return Net(lambda s, x: finish(s.head(s.enc(x).relu())), enc=nn.Conv2d(3, 8, 3), head=nn.Conv2d(8, 4, 1))

    assert find_layer(build(lambda x: x.mean((2, 3))), image(), target=1) == "head"
    assert find_layer(build(torch.tanh), image(), target=1) == "head"


def test_hidden_states_that_are_returned_too_are_layers():
    net = Net(
        lambda s, x: {"hidden": (y := s.conv(x)), "logits": s.fc(y.mean((2, 3)))},
        conv=nn.Conv2d(3, 8, 3),
        fc=nn.Linear(8, 2),
    )
    for target in (1, lambda output: output["logits"][:, 1]):
        assert find_layer(net, image(), target=target) == "conv"


# --- nothing found, and what is said --------------------------------------------------------------------------------


def zero_head() -> nn.Module:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    nn.init.zeros_(net[4].weight)
    return net


def test_a_head_of_zeros_is_named():
    with pytest.raises(ValueError, match="the gradient of this target is zero") as error:
        find_layer(zero_head(), image(), target=1)
    assert "1 (1, 4, 62, 62): a gradient at 0.0% of its cells" in str(error.value)


def test_a_class_that_is_switched_off_is_named():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    net.append(Lambda(lambda scores: scores * torch.tensor([1.0, 0.0, 1.0])))
    assert find_layer(net, image(), target=0) == "0"
    with pytest.raises(ValueError, match="the gradient of this target is zero"):
        find_layer(net, image(), target=1)
    assert find_layer(net, image(), target=torch.tensor([[1, 0]])) == "0"


def test_a_score_without_gradients_is_named():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), Lambda(lambda x: x.mean((2, 3)).detach()))
    with pytest.raises(ValueError, match="the score is computed without gradients"):
        find_layer(net, image(), target=1)


@pytest.mark.slow
def test_the_fresh_vision_transformer_of_torchvision():
    models = pytest.importorskip("torchvision.models")
    with pytest.raises(ValueError, match=r"gradient of this target is zero .*encoder\.ln \(1, 197, 768\)"):
        find_layer(models.vit_b_16(weights=None), image(1, 3, 224, 224), target=1)


def test_what_was_looked_at_is_said_with_the_reasons():
    net = Net(lambda s, x: s.fc(s.pool(x).flatten(1)), pool=nn.AdaptiveAvgPool2d(2), fc=nn.Linear(12, 2))
    with pytest.raises(ValueError, match=r"saliency_layer=None .*pool \(1, 3, 2, 2\): an adaptive pool.*expected .*"):
        find_layer(net, image(), target=1)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12288, 3))
    with pytest.raises(ValueError, match=r"1 \(1, 3\): no grid; 0 \(1, 12288\): no grid"):
        find_layer(net, image(), target=1)


def test_the_search_needs_values_a_named_layer_does_not():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 62 * 62, 3)).to("meta")
    with pytest.raises(ValueError, match=r"saliency_layer=None.*'meta'"):
        saliency.grad_cam(net, torch.zeros(IMAGE, device="meta"), 1)
    assert saliency.grad_cam(net, torch.zeros(IMAGE, device="meta"), 1, "0").shape == (1, 1, 62, 62)


def test_lazy_models_stay_lazy():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(3))
    with pytest.raises(ValueError, match="lazy parameters"):
        find_layer(net, image(), target=1)
    assert isinstance(net[2].weight, nn.UninitializedParameter)


# --- models that do what they want ----------------------------------------------------------------------------------


def test_a_backbone_without_gradients_still_has_layers():
    def frozen(s: Net, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = s.conv(x).relu()
        return s.fc(x.mean((2, 3)))

    net = Net(frozen, conv=nn.Conv2d(3, 4, 3), fc=nn.Linear(4, 2))
    for one in (net, net.requires_grad_(False)):
        assert find_layer(one, image(), target=1) == "conv"
        assert torch.no_grad()(find_layer)(one, image(), target=1) == "conv"


def test_a_backbone_without_gradients_beside_one_that_has_them():
    """What the first returns depends on the image, even if its graph does not say so; so do its tokens."""

    def both(s: Net, x: Tensor) -> Tensor:
        with torch.no_grad():
            t = s.norm(s.mlp(s.embed(x).flatten(2).mT))
        return s.fc(t.mean(1)) + x.mean()

    def of_functions(s: Net, x: Tensor) -> Tensor:
        with torch.no_grad():
            t = s.norm(F.conv2d(x, s.embed.weight, stride=8).flatten(2).mT)
        return s.fc(t.mean(1)) + x.mean()

    for function in (both, of_functions):
        net = Net(function, **patches(mlp=nn.Linear(64, 64)))
        for one in (net, net.requires_grad_(False)):
            assert find_layer(one, image(), target=1) == "norm"


def test_a_part_in_inference_mode_is_left_out():
    def frozen(s: Net, x: Tensor) -> Tensor:
        with torch.inference_mode():
            x = s.conv(x)
        return s.fc(s.head(x.clone()).mean((2, 3)))

    net = Net(frozen, conv=nn.Conv2d(3, 4, 3), head=nn.Conv2d(4, 4, 3), fc=nn.Linear(4, 2))
    assert find_layer(net, image(), target=1) == "head"


def test_an_integer_input_has_layers():
    net = Net(lambda s, x: s.fc(s.conv(x / 255).mean((2, 3))), conv=nn.Conv2d(3, 4, 3), fc=nn.Linear(4, 2))
    for one in (net, net.requires_grad_(False)):
        assert find_layer(one, (image() * 255).long(), target=1) == "conv"


def test_half_of_what_an_operation_returns():
    class Half(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            first, self.second = x.chunk(2, 1)
            return first

    net = Net(lambda s, x: (s.cut(s.conv(x)), s.cut.second.mean((2, 3)))[1], conv=nn.Conv2d(3, 4, 3), cut=Half())
    assert find_layer(net, image(), target=1) == "conv"


def test_one_image_is_enough_but_for_a_function_of_the_output():
    sizes: list[int] = []
    net = Net(lambda s, x: (sizes.append(len(x)), s.conv(x).relu().mean((2, 3)))[1], conv=nn.Conv2d(3, 4, 3))
    find_layer(net, image(3, 3, 8, 8), target=[0, 1, 2])
    find_layer(net, image(3, 3, 8, 8), target=lambda output: output[:, 1])
    assert sizes == [1, 3]


def test_the_search_adds_no_operation_to_the_model():
    """A rule of the user's own, around the call, sees what the model does."""
    seen: list[bool] = []

    def clone(function: Callable[..., Tensor], *args: Any, **options: Any) -> Tensor:
        seen.append(net.running)
        return function(*args, **options)

    def run(s: Net, x: Tensor) -> Tensor:
        s.running = True
        x = s.view(s.conv(x)).mean((2, 3))
        s.running = False
        return x

    net = Net(run, conv=nn.Conv2d(3, 4, 3), view=Lambda(lambda x: x.view_as(x)))
    net.running = False
    with saliency.RuleContext({Tensor.clone: clone, Tensor.detach: clone}):
        assert find_layer(net, image(), target=1) == "view"
    assert not any(seen)


def test_checkpoints():
    from torch.utils.checkpoint import checkpoint

    def build(reentrant: bool) -> nn.Module:
        return Net(
            lambda s, x: s.fc(s.b(checkpoint(s.a, x.requires_grad_(), use_reentrant=reentrant)).mean((2, 3))),
            a=nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()),
            b=nn.Conv2d(4, 4, 3),
            fc=nn.Linear(4, 2),
        )

    for reentrant in (False, True):
        assert find_layer(build(reentrant), image(), target=1) == "b"


def test_a_view_that_is_overwritten_is_found():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), Lambda(lambda x: x.view_as(x)), nn.ReLU(inplace=True))
    net = Net(lambda s, x: s.fc(torch.sigmoid_(s.body(x)).mean((2, 3))), body=net[:2], fc=nn.Linear(4, 2))
    assert find_layer(net, image(), target=1) == "body"


def test_what_does_not_depend_on_the_image_is_no_layer():
    net = Net(
        lambda s, x: s.fc((s.conv(x) + s.position(s.table.weight.T.view(1, 4, 8, 8))).relu().mean((2, 3))),
        conv=nn.Conv2d(3, 4, 8, 8),
        table=nn.Embedding(64, 4),
        position=nn.Conv2d(4, 4, 1),
        fc=nn.Linear(4, 2),
    )
    for one in (net, net.requires_grad_(False)):
        assert find_layer(one, image(), target=1) == "conv"


def test_a_buffer_that_is_written_keeps_no_graph():
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.zeros(4))

        def forward(self, x: Tensor) -> Tensor:
            self.mean.copy_(x.mean((0, 2, 3)))
            return x

    net = nn.Sequential(nn.Conv2d(3, 4, 3), Mean(), nn.Flatten(), nn.Linear(4 * 62 * 62, 2)).eval()
    assert find_layer(net, image(), target=1) == "1"
    assert not net[1].mean.requires_grad
    assert net[1].mean.tolist() == [0, 0, 0, 0]


def test_the_model_and_the_input_stay_as_they_are():
    net, x = Net(two_heads, bb=nn.Conv2d(3, 8, 3, 2), mask=nn.Conv2d(8, 1, 1), fc=nn.Linear(8, 2)).train(), image()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    find_layer(net, x, target=lambda output: output[1][:, 1])
    assert net.training
    assert not x.requires_grad
    assert all(parameter.grad is None for parameter in net.parameters())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


# --- remembered -----------------------------------------------------------------------------------------------------


class Counting(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))
        self.passes = 0
        self.eval()
        self(image())

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        return super().forward(x)


def passes(net: Counting, *shape: int, target: Any = 1, **options: Any) -> int:
    """How often the model runs to find its layer."""
    before = net.passes
    site = make_site(make_call(net, image(*shape)), None, target=target, **options)
    assert (site.name, site.module, site.found) == ("1", net[1], True)
    return net.passes - before


def test_a_second_call_searches_no_more():
    net = Counting()
    saliency.grad_cam(net, image(), 1)
    before = net.passes
    saliency.grad_cam(net, image(), 2)
    assert net.passes == before + 1


def test_what_is_like_an_earlier_call():
    net = Counting()
    assert passes(net) == 1
    assert passes(net) == passes(net, target=2) == passes(net, target=[0]) == passes(net, target=torch.tensor([1])) == 0
    assert passes(net, 5, 3, 64, 64, target=torch.tensor([[1, 2]] * 5)) == 0
    for other in (None, (1,), torch.ones(1, 3)):
        assert (passes(net, target=other), passes(net, target=other)) == (1, 0)
    assert passes(net.double().float()) == 0


def test_other_shapes_and_arguments_are_searched():
    net = Net(lambda s, x, scale=1: s.conv(x).mean((2, 3)) * scale, conv=nn.Conv2d(3, 4, 3))
    calls = [
        (image(), None, {}),
        (image(1, 3, 32, 32), None, {}),
        (image(), 2, {}),
        (image(), None, {"scale": 2}),
        (image(), None, {"scale": 3}),
        (image(), None, {"scale": torch.ones(4)}),
    ]
    for call in calls:
        assert found_layer(make_call(net, *call), 1) == ("conv", net.conv)
    assert len(search._remembered[net]) == len(calls)
    assert found_layer(make_call(net.double(), image().double()), 1) == ("conv", net.conv)
    assert len(search._remembered[net]) == len(calls) + 1


def test_functions_are_told_apart():
    def first(output: Tensor) -> Tensor:
        return output[:, 0]

    class Picky:
        """Neither hashed nor weakly referenced: like nothing else."""

        __slots__ = ()
        __hash__ = None

        def __call__(self, output: Tensor) -> Tensor:
            return output[:, 0]

        def method(self, output: Tensor) -> Tensor:
            return output[:, 0]

    class Plain(nn.Module):
        def method(self, output: Tensor) -> Tensor:
            return output[:, 0]

    net, plain, picky = Counting(), Plain(), Picky()
    for target in (first, lambda output: output[:, 0], partial(first), plain.method):
        assert [passes(net, target=target) for _ in range(2)] == [1, 0]
    assert passes(net, target=plain.method) == 0
    assert passes(net, target=Plain().method) == 1
    assert [passes(net, target=picky) for _ in range(2)] == [1, 1]
    assert [passes(net, target=picky.method) for _ in range(2)] == [1, 1]


def test_functions_are_not_kept_alive_and_not_without_bound():
    net = Counting()
    for i in range(search._MOST + 10):
        passes(net, target=lambda output, i=i: output[:, i % 3])
    assert len(search._remembered[net]) == search._MOST
    target = partial(lambda output: output[:, 0])
    passes(net, target=target)
    gone = weakref.ref(target)
    del target
    gc.collect()
    assert gone() is None


def test_models_are_not_kept_alive():
    net = Counting()
    passes(net)
    gone = weakref.ref(net)
    del net
    gc.collect()
    assert gone() is None


def test_a_changed_model_is_searched():
    net = Counting()
    passes(net)
    net[1] = nn.ReLU()
    assert (passes(net), passes(net)) == (1, 0)
    net[3] = nn.Linear(4 * 62 * 62, 3)  # what lies behind the layer says whether it gets a gradient
    assert (passes(net), passes(net)) == (1, 0)
    net.insert(1, nn.Identity())
    assert found_layer(make_call(net, image()), 1) == ("2", net[2])


def test_a_renamed_layer_is_searched():
    net = Net(lambda s, x: s.get_submodule(s.at)(x).mean((2, 3)), conv=nn.Conv2d(3, 4, 3))
    net.at = "conv"
    assert found_layer(make_call(net, image()), 1)[0] == "conv"
    net.other, net.at = net.conv, "other"
    del net.conv
    assert found_layer(make_call(net, image()), 1)[0] == "other"


def test_searched_anew_when_asked():
    """The remembered layer gets no gradient any more once the branch is cut: whoever notices asks anew."""
    net = Net(
        lambda s, x: (y := s.first(x)).mean((2, 3)) + s.gain * s.second(y).mean((2, 3)),
        first=nn.Conv2d(3, 4, 3),
        second=nn.Conv2d(4, 4, 3),
    )
    net.gain = 1.0
    call = make_call(net, image())
    assert make_site(call, None, target=1).name == "second"
    net.gain = 0.0
    assert make_site(call, None, target=1).name == "second"
    assert make_site(call, None, target=1, anew=True).name == "first"
    assert make_site(call, None, target=1).name == "first"
    assert make_site(call, "second", target=1, anew=True).name == "second"
    assert not make_site(call, "second", target=1).found


def test_threads_find_and_remember():
    net = Counting()
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda: found.extend(found_layer(make_call(net, image()), 1)[0] for _ in range(5)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == ["1"] * 20
    assert len(search._remembered[net]) == 1


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda net: torch.compile(net, backend="eager")])
def test_wrapped_models_and_layers(wrap):
    net = Counting()
    assert found_layer(make_call(wrap(net), image()), 1) == ("1", net[1])
    assert passes(net) == 0
    net[1] = torch.compile(nn.Sequential(nn.ReLU(), nn.Identity()), backend="eager")
    assert [found_layer(make_call(net, image()), 1) for _ in range(2)] == [("1", net[1]._orig_mod)] * 2


def test_candidates_say_what_was_looked_at_and_why_it_is_not_the_one():
    net = Net(
        lambda s, x: (s.mask(s.bb(x)), s.fc(s.pool(s.bb(x)).flatten(1))),
        bb=nn.Conv2d(3, 8, 3, 2),
        mask=nn.Conv2d(8, 1, 1),
        pool=nn.AdaptiveAvgPool2d(1),
        fc=nn.Linear(8, 2),
    )
    x = torch.rand(2, 3, 9, 9)
    found = saliency.layer_candidates(net, x, target=lambda output: output[1][:, 1])
    assert [(each.name, each.shape[1:], each.problem) for each in found] == [
        ("mask", (1, 4, 4), "no gradient of this target"),
        ("bb", (8, 4, 4), ""),
        ("pool", (8, 1, 1), "an adaptive pool"),
        ("fc", (2,), "no grid"),
    ]
    assert find_layer(net, x, target=lambda output: output[1][:, 1]) == "bb"
    with pytest.raises(ValueError, match="saliency_layer=None finds no layer"):
        saliency.layer_candidates(nn.Sequential(nn.Flatten(), nn.Linear(243, 2)), x, target=1)
