"""The layer that is found where none is named: the map is that of autograd by hand at the layer that is meant."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import saliency
from saliency import find_layer, grad_cam, layer_cam
from tests.users.networks import Net, rand

X = torch.rand(1, 3, 64, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def net(forward, **parts):
    torch.manual_seed(1)
    for part in parts.values():
        for module in part.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
    return Net(forward, **parts)


def by_hand(model, layer, score, grid=lambda x: x, x=X):
    """The largest gradient of any channel, at every position of a layer."""
    kept = []
    handle = model.get_submodule(layer).register_forward_hook(lambda module, args, output: kept.append(output))
    output = model(x)
    handle.remove()
    (gradient,) = torch.autograd.grad(score(output), kept[-1])
    return grid(gradient).abs().amax(1, keepdim=True)


def check(model, layer, target, score, grid=lambda x: x, x=X):
    assert find_layer(model, x, target=target) == layer
    expected = by_hand(model, layer, score, grid, x)
    assert expected.any()
    torch.testing.assert_close(saliency.saliency(model, x, target, None), expected)


def as_grid(tokens):
    return tokens.mT.unflatten(2, (4, 6))


# --- pooled channels, pools -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [64, 96, 256])
def test_pooled_channels_are_no_map(channels):
    parts = {"conv": nn.Conv2d(3, channels, 16, 16), "pool": nn.AdaptiveAvgPool1d(1), "fc": nn.Linear(channels, 5)}
    model = net(lambda s, x: s.fc(s.pool(s.conv(x).relu().flatten(2)).flatten(1)), **parts)
    check(model, "conv", 1, lambda output: output[0, 1])


POOLS = {
    "3-D": (nn.Conv3d(1, 8, 3), nn.AdaptiveAvgPool3d(2), 64, (8, 9, 10)),
    "3-D to unlike sides": (nn.Conv3d(1, 4, 3), nn.AdaptiveAvgPool3d((1, 2, 3)), 24, (8, 9, 10)),
    "1-D": (nn.Conv1d(1, 8, 3), nn.AdaptiveAvgPool1d(4), 32, (40,)),
    "1-D to more": (nn.Conv1d(1, 8, 3), nn.AdaptiveAvgPool1d(9), 72, (40,)),
    "2-D": (nn.Conv2d(1, 8, 3), nn.AdaptiveAvgPool2d((3, 2)), 48, (12, 10)),
}


@pytest.mark.parametrize("name", POOLS)
def test_a_pool_of_any_dimension_is_left_out(name):
    conv, pool, features, size = POOLS[name]
    model = net(lambda s, x: s.fc(s.pool(s.conv(x).relu()).flatten(1)), conv=conv, pool=pool, fc=nn.Linear(features, 2))
    check(model, "conv", 1, lambda output: output[0, 1], x=rand(1, 1, *size))


# --- tokens ---------------------------------------------------------------------------------------------------------


def tokens(s, x):
    return s.norm(s.embed(x).flatten(2).mT)


def heads(y):
    return y.view(len(y), -1, 4, 8).transpose(1, 2)


def attention_pool(s, x):
    t = tokens(s, x)
    scores = s.q_norm(heads(t[:, :1])) @ s.k_norm(heads(s.k(t))).mT
    return s.fc((s.drop(scores.softmax(-1)) @ heads(t)).flatten(1))


def mean_query_pool(s, x):
    t = tokens(s, x)
    scores = s.q_norm(heads(t.mean(1, keepdim=True))) @ s.k_norm(heads(s.k(t))).mT
    return s.fc((s.drop((scores * 2).softmax(-1)) @ heads(t)).flatten(1))


def softmax_of_one_head(s, x):
    t = tokens(s, x)
    scores = s.q_norm(t[:, -1:]) @ s.k(t).mT
    return s.fc((s.drop(scores.softmax(-1)) @ t).flatten(1))


@pytest.mark.parametrize("forward", [attention_pool, mean_query_pool, softmax_of_one_head])
def test_attention_is_no_map(forward):
    parts = {"embed": nn.Conv2d(3, 32, 16, 16), "norm": nn.LayerNorm(32), "k": nn.Linear(32, 32)}
    parts |= {"fc": nn.Linear(32, 2), "q_norm": nn.Identity(), "k_norm": nn.Identity(), "drop": nn.Dropout(0.0)}
    check(net(forward, **parts), "norm", 1, lambda output: output[0, 1], as_grid)


@pytest.mark.parametrize("queries", [100, 24, 9])
def test_queries_are_no_map(queries):
    def forward(s, x):
        return {"logits": s.cls(s.norm(s.dec(s.q.weight[None], s.bb(x).flatten(2).mT)))}

    parts = {"bb": nn.Conv2d(3, 32, 16, 16), "q": nn.Embedding(queries, 32), "norm": nn.LayerNorm(32)}
    parts |= {"dec": nn.TransformerDecoderLayer(32, 2, 32, batch_first=True), "cls": nn.Linear(32, 5)}
    check(net(forward, **parts), "bb", (3, 2), lambda output: output["logits"][0, 3, 2])


# --- stages, segmentation, heads ------------------------------------------------------------------------------------


@pytest.mark.parametrize("stages", [2, 3, 4])
def test_a_backbone_that_returns_its_stages(stages):
    def forward(s, x):
        found = []
        for stage in s.stages:
            x = stage(x)
            found.append(x)
            x = x.relu()
        return tuple(found)

    convs = nn.ModuleList([nn.Conv2d(3 if not i else 4, 4, 3, 2) for i in range(stages)])
    model = net(lambda s, x: s.fc(s.bb(x)[-1].mean((2, 3))), bb=net(forward, stages=convs), fc=nn.Linear(4, 2))
    check(model, f"bb.stages.{stages - 1}", 1, lambda output: output[0, 1])


RESIZED = {
    "nearest": F.interpolate,
    "bilinear": lambda y, size: F.interpolate(y, size, mode="bilinear", align_corners=True),
    "a copy": lambda y, size: y[...] if size else y,
}


@pytest.mark.parametrize("name", RESIZED)
def test_the_score_itself_is_no_map(name):
    parts = {"enc": nn.Conv2d(3, 8, 3, 2, 1), "head": nn.Conv2d(8, 4, 1)}
    model = net(lambda s, x: RESIZED[name](s.head(s.enc(x).relu()), x.shape[2:]), **parts)
    check(model, "enc", lambda output: output[:, 1].sum((1, 2)), lambda output: output[:, 1].sum())


@pytest.mark.parametrize("second", [(0, 1), (1, 0), (2, 1)])
def test_the_head_that_is_asked(second):
    place, label = second
    parts = {"bb": nn.Conv2d(3, 8, 3, 2), "mask": nn.Conv2d(8, 1, 1), "fc": nn.Linear(8, 2)}

    def forward(s, x):
        y = s.bb(x)
        found = [s.mask(y), s.mask(y).sigmoid()]
        found.insert(place, s.fc(y.mean((2, 3))))
        return tuple(found)

    check(net(forward, **parts), "bb", lambda o: o[place][:, label], lambda o: o[place][0, label])


# --- a target without a gradient ------------------------------------------------------------------------------------


@pytest.mark.parametrize("zero", ["all", "row", "scale"])
def test_a_zero_head_is_named(zero):
    parts = {"embed": nn.Conv2d(3, 32, 16, 16), "norm": nn.LayerNorm(32), "fc": nn.Linear(32, 3)}
    model = net(lambda s, x: s.fc(tokens(s, x).mean(1)) * (0 if zero == "scale" else 1), **parts)
    if zero != "scale":
        model.fc.weight.data[1 if zero == "row" else slice(None)] = 0
    with pytest.raises(ValueError, match=r"^saliency_layer=None .* gradient of this target is zero at all of them"):
        grad_cam(model, X, 1)


@pytest.mark.parametrize("kind", ["frozen", "scripted", "exported"])
@pytest.mark.filterwarnings("ignore")
def test_programs_without_modules_are_told_what_to_do(kind):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    model = model.double().eval()
    traced = torch.jit.trace(model, X)
    program = {
        "frozen": lambda: torch.jit.freeze(traced),
        "scripted": lambda: torch.jit.freeze(torch.jit.script(model)),
        "exported": lambda: torch.export.export(model, (X,)).module(),
    }[kind]()
    with pytest.raises(ValueError, match=r"^saliency_layer=None finds no layer: no module .* exported programs"):
        grad_cam(program, X, 1)


# --- remembered -----------------------------------------------------------------------------------------------------


class Branches(nn.Module):
    """A network of which a part can be left out."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3, 2), nn.Conv2d(4, 4, 3, 2), nn.Conv2d(4, 4, 3)
        self.fc, self.last, self.passes = nn.Linear(4, 2), "c", 0

    def forward(self, x):
        self.passes += 1
        y = self.a(x).relu()
        for name in "bc" if self.last == "c" else self.last.strip("a"):
            y = getattr(self, name)(y).relu()
        return self.fc(y.mean((2, 3)))


METHODS = ["grad_cam", "layer_cam", "score_cam", "feature_ablation", "excitation_backprop"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("last", ["a", "b"])
def test_a_layer_that_is_used_no_more_is_searched_anew(method, last):
    torch.manual_seed(0)
    model = Branches().double().eval()
    explain = getattr(saliency, method)
    explain(model, X, 1)
    model.last = last
    torch.testing.assert_close(explain(model, X, 1), explain(model, X, 1, last))


def test_a_zero_map_of_a_layer_found_for_another_target_names_the_right_one():
    def forward(s, x):
        y = s.c(x)
        return torch.cat([s.f1(s.a(y).mean((2, 3))), s.f2(s.b(y).mean((2, 3)))], 1)

    parts = {"c": nn.Conv2d(3, 4, 3, 2), "a": nn.Conv2d(4, 5, 3, 2), "b": nn.Conv2d(4, 5, 3, 2)}
    model = net(forward, **parts, f1=nn.Linear(5, 2), f2=nn.Linear(5, 2))
    layer_cam(model, X, 0)
    with pytest.warns(UserWarning, match=r"found: 'a'.*try saliency_layer='b'"):
        layer_cam(model, X, 3)


@pytest.mark.parametrize("again", [1, 0, [1], torch.tensor([[0, 1]])])
def test_a_second_call_searches_no_more(again):
    model = Branches().double().eval()
    saliency.saliency(model, X, 1, None)
    assert model.passes == 2
    saliency.saliency(model, rand(1, 3, 64, 96), again, None)
    assert model.passes == 3
