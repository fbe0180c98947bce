"""Attention methods against their papers' formulas, in loops over layers, heads and tokens, in float64."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor

import saliency
from saliency.engine.attending import Attending
from tests.methods.transformers import GRID, HEADS, WIDTH, Queries, Transformer, images, shown, twins

TARGETS = [3, 1]
LAYERS = 3
# name -> the network, and the queries that it reads of the last attention
NETWORKS = {
    "class": (Transformer, [0]),
    "bias": (partial(Transformer, biased=True), [0]),
    "registers": (partial(Transformer, registers=4), [0]),
    "two": (partial(Transformer, reads="two", registers=1), [0, 1]),
    "mean": (partial(Transformer, reads="mean"), list(range(20))),
    "attention": (partial(Transformer, reads="attention"), [0]),
    "class attention": (partial(Transformer, reads="class attention"), [0]),
}


def fused(a: Tensor, how: str) -> Tensor:
    result = torch.zeros(a.shape[1:], dtype=a.dtype)
    for i in range(a.shape[1]):
        for j, heads in enumerate(zip(*a[:, i].tolist(), strict=True)):
            result[i, j] = {"mean": sum(heads) / len(heads), "max": max(heads), "min": min(heads)}[how]
    return result


def discarded(a: Tensor, ratio: float) -> Tensor:
    values = sorted(a.flatten().tolist())
    count = int(len(values) * ratio)
    return torch.where(a <= values[count - 1], 0, a) if count else a


def raised(a: Tensor, da: Tensor) -> Tensor:
    result = torch.zeros(a.shape[1:], dtype=a.dtype)
    for h in range(len(a)):
        for i in range(a.shape[1]):
            pairs = zip(a[h, i].tolist(), da[h, i].tolist(), strict=True)
            result[i] += torch.tensor([max(0.0, x * dx) / len(a) for x, dx in pairs], dtype=a.dtype)
    return result


def chained(name: str, seen: list[dict[str, Tensor]], matrix, identity: bool) -> Tensor:
    """The relevance of the tokens in front of the first layer, of the product of all layers' matrices."""
    tokens = 21 if name == "class attention" else seen[0]["a"].shape[-1]
    product = torch.eye(tokens, dtype=torch.float64)
    for part in seen:
        m = matrix(part)
        if name == "attention" and len(m) == 1:  # what is read out is none of the tokens
            row = m / m.sum() if identity else m
            return (row @ product)[0]
        at = tokens - m.shape[1]  # before they meet the class token, the others stand where they will
        full = torch.zeros(tokens, tokens, dtype=torch.float64)
        full[at : at + len(m), at:] = m
        step = full + torch.eye(tokens, dtype=torch.float64)
        if identity:
            for i in range(tokens):
                step[i] /= step[i].sum()
        product = step @ product
    rows = NETWORKS[name][1]
    read = sum(product[i] for i in rows) / len(rows)
    return read[1:] if name == "class attention" else read


def expected(name: str, seen: list[dict[str, Tensor]], method: str, **options) -> Tensor:
    rows, last = NETWORKS[name][1], seen[-1]
    if method == "raw_attention":
        return sum(fused(last["a"], options.get("head_fusion", "mean"))[i] for i in rows) / len(rows)
    if method == "attention_rollout":
        start, how, ratio = (
            options.get(o, d) for o, d in (("start_layer", 0), ("head_fusion", "mean"), ("discard_ratio", 0))
        )
        return chained(name, seen[start:], lambda part: discarded(fused(part["a"], how), ratio), True)
    if method == "gradient_attention":
        result = torch.zeros(last["a"].shape[2], dtype=torch.float64)
        for h in range(HEADS):
            for i in range(last["a"].shape[1]):
                result += last["a"][h, i] * last["da"][h, i]
        return result
    start = options.get("start_layer", 0)
    return chained(name, seen[start:], lambda part: raised(part["a"], part["da"]), False)


CALLS = [
    ("raw_attention", {}),
    ("raw_attention", {"head_fusion": "max"}),
    ("attention_rollout", {}),
    ("attention_rollout", {"head_fusion": "min", "discard_ratio": 0.4}),
    ("attention_rollout", {"head_fusion": "max", "start_layer": 1}),
    ("gradient_attention", {}),
    ("transformer_attribution", {}),
    ("transformer_attribution", {"start_layer": 2}),
]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(
    ("method", "options"),
    CALLS,
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())),
)
def test_a_method_is_its_formula(name, method, options):
    """For images of two targets, fused and spelled out; (N, tokens), and the map of those of the image."""
    models, x = twins(NETWORKS[name][0]), images()
    wanted = []
    for n in range(2):
        seen = shown(models[1], lambda model, n=n: model(x[n : n + 1])[0, TARGETS[n]])
        wanted.append(expected(name, seen, method, **options))
    for model in models:
        found = saliency.METHODS[method].function(model, x, TARGETS, reduction=None, **options)
        torch.testing.assert_close(found, torch.stack(wanted), rtol=1e-10, atol=1e-12)
        maps = saliency.METHODS[method].function(model, x, TARGETS, **options)
        assert torch.equal(maps.flatten(1), found[:, found.shape[1] - 20 :])
        assert maps.shape == (2, 1, *GRID)


@pytest.mark.parametrize("name", NETWORKS)
def test_legrad_is_its_formula(name):
    models, x = twins(NETWORKS[name][0]), images()
    wanted = []
    for n in range(2):
        total = 0
        for layer in range(LAYERS):

            def score(model, layer=layer, n=n):
                tokens = []
                hook = model.blocks[layer].register_forward_hook(lambda module, args, output: tokens.append(output))
                model(x[n : n + 1])
                hook.remove()
                return model.scores(tokens[0])[0, TARGETS[n]]

            # What the head itself attends to comes behind the blocks in the list, twice.
            da = shown(models[1], score)[layer]["da"]
            positive = torch.zeros(da.shape[2], dtype=torch.float64)
            for h in range(HEADS):
                for i in range(da.shape[1]):
                    positive += da[h, i].clamp(min=0) / (HEADS * da.shape[1])
            total = total + positive / LAYERS
        wanted.append(total)
    for model in models:
        found = saliency.legrad(model, x, TARGETS, reduction=None)
        torch.testing.assert_close(found, torch.stack(wanted), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", NETWORKS)
def test_grad_eclip_is_its_formula(name):
    models, x = twins(NETWORKS[name][0]), images()
    for n in range(2):
        last = shown(models[1], lambda model, n=n: model(x[n : n + 1])[0, TARGETS[n]])[-1]
        tokens = last["a"].shape[2]
        queries, keys = (last[part].transpose(0, 1).reshape(-1, WIDTH) for part in "qk")
        first = tokens - 20
        wanted = torch.zeros(tokens, dtype=torch.float64)
        for i, query in enumerate(queries):
            alike = [float(query @ key / (query.norm() * key.norm())) for key in keys]
            low, high = min(alike[first:]), max(alike[first:])
            for j in range(tokens):
                wanted[j] += float(last["da"][:, i, j].sum()) * (alike[j] - low) / (high - low)
        for model in models:
            found = saliency.grad_eclip(model, x[n : n + 1], TARGETS[n], reduction=None)
            torch.testing.assert_close(found[0], wanted.clamp(min=0), rtol=1e-10, atol=1e-12)


def test_object_queries_follow_the_papers_rules():
    """Encoder, queries among each other, queries across: Chefer et al., ICCV 2021, equations 5 to 11."""
    models, x = twins(Queries), images(1)

    def normalised(r: Tensor) -> Tensor:
        result = torch.eye(len(r), dtype=r.dtype)
        for i in range(len(r)):
            row = r[i] - torch.eye(len(r), dtype=r.dtype)[i]
            result[i] += row / row.sum() if row.sum() != 0 else 0
        return result

    for query in range(4):
        seen = [raised(part["a"], part["da"]) for part in shown(models[1], lambda model, q=query: model(x)[0, q, 2])]
        tokens, queries = torch.eye(20, dtype=torch.float64), torch.eye(4, dtype=torch.float64)
        cross = torch.zeros(4, 20, dtype=torch.float64)
        for m in seen[:2]:
            tokens = tokens + m @ tokens
        for among, across in (seen[2:4], seen[4:6]):
            cross, queries = cross + among @ cross, queries + among @ queries
            cross = cross + normalised(queries).T @ (across @ normalised(tokens))
        for model in models:
            found = saliency.transformer_attribution(model, x, (query, 2))
            torch.testing.assert_close(found[0, 0].flatten(), cross[query], rtol=1e-10, atol=1e-14)
            assert found.shape == (1, 1, *GRID)
    with pytest.raises(ValueError, match=r"^model=Queries has cross attention in layer 'across\.0\.attention'"):
        saliency.attention_rollout(models[0], x, (0, 2))


@pytest.mark.parametrize("method", ["raw_attention", "gradient_attention", "transformer_attribution", "grad_eclip"])
def test_queries_that_are_not_read_have_no_part(method):
    """Of detections, whose target names a query."""
    model, x = twins(Queries)[0], images()
    found = saliency.METHODS[method].function(model, x, [(0, 2), (3, 2)])
    for n, query in enumerate((0, 3)):
        alone = saliency.METHODS[method].function(model, x[n : n + 1], (query, 2))
        torch.testing.assert_close(found[n : n + 1], alone, rtol=1e-10, atol=1e-14)
    assert not torch.allclose(found, saliency.METHODS[method].function(model, x, (1, 2)))


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("method", ["raw_attention", "gradient_attention", "grad_eclip"])
def test_one_layer_is_the_last_in_a_module(method, layer):
    model, x = twins(Transformer)[0], images()
    function = saliency.METHODS[method].function
    found = function(model, x, 1, f"blocks.{layer}")
    assert torch.equal(found, function(model, x, 1, model.blocks[layer].attention))
    assert not torch.equal(found, function(model, x, 1))
    assert torch.equal(function(model, x, 1), function(model, x, 1, "blocks"))


@pytest.mark.parametrize("method", ["attention_rollout", "transformer_attribution", "legrad"])
def test_a_chain_begins_in_a_module(method):
    model, x = twins(Transformer)[0], images()
    function = saliency.METHODS[method].function
    found = function(model, x, 1, "blocks.1")
    torch.testing.assert_close(found, function(model, x, 1, start_layer=1), rtol=0, atol=0)
    torch.testing.assert_close(function(model, x, 1, "blocks.1", start_layer=1), function(model, x, 1, start_layer=2))
    with pytest.raises(ValueError, match=r"^start_layer=3 is not an attention's index; expected 0 to 2\.$"):
        function(model, x, 1, start_layer=3)


def test_gradient_attention_adds_up_to_what_the_attention_does():
    """Sum over keys of a da is the first-order share of what the attention returns."""
    model, x = twins(Transformer)[1], images(1)
    found = saliency.gradient_attention(model, x, 2, "blocks.1", reduction=None).sum()
    with saliency.Probe(model.blocks[1].attention.out, target="input") as probe:
        model(x)[0, 2].backward()
    torch.testing.assert_close(found, (probe.data[0] * probe.data[0].grad).sum(), rtol=1e-10, atol=1e-12)


def test_rollout_conserves():
    """Every row of every matrix adds up to 1, and so does what is read."""
    model, x = twins(partial(Transformer, reads="two", registers=2))[0], images()
    for options in ({}, {"head_fusion": "max"}, {"discard_ratio": 0.9}):
        found = saliency.attention_rollout(model, x, 0, reduction=None, **options)
        torch.testing.assert_close(found.sum(1), torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize(
    "options",
    [
        {"head_fusion": "median"},
        {"head_fusion": 3},
        {"discard_ratio": 1.0},
        {"discard_ratio": -0.1},
        {"discard_ratio": math.nan},
        {"start_layer": -1},
        {"start_layer": 1.5},
        {"start_layer": True},
    ],
    ids=str,
)
def test_options_that_mean_nothing(options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=rf"^{name}=.*expected .*\.$"):
        saliency.attention_rollout(twins(Transformer)[0], images(), 0, **options)
    assert value is not None


def test_attention_maps_are_those_of_the_network():
    models, x = twins(partial(Transformer, reads="class attention")), images()
    for model in models:
        maps = saliency.attention_maps(model, x)
        assert maps.names == [f"blocks.{i}.attention" for i in range(3)] + [f"last.{i}.attention" for i in range(2)]
        assert [tuple(of.shape) for of in maps] == [(2, 3, 20, 20)] * 3 + [(2, 3, 1, 21)] * 2
        assert maps[1:3].names == maps.names[1:3]
        for n in range(2):
            seen = shown(models[1], lambda model, n=n: model(x[n : n + 1])[0, 0])
            for of, part in zip(maps, seen, strict=True):
                torch.testing.assert_close(of[n], part["a"], rtol=1e-10, atol=1e-14)
    with pytest.raises(ValueError, match=r"^model=Conv2d has no attention; expected"):
        saliency.attention_maps(torch.nn.Conv2d(3, 3, 1).double(), x)


def test_outlier_tokens_are_those_with_large_norms():
    """Of 20 tokens one is 100 times as large: z = sqrt(19) = 4.36 standard deviations."""

    class Tokens(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Identity()

        def forward(self, x):
            return self.layer(x).mean((2, 3))

    x = torch.ones(2, 3, *GRID)
    x[0, :, 2, 3] = 100
    maps = torch.rand(2, 4, *GRID)
    found = saliency.outlier_tokens(Tokens(), x, maps, "layer")
    for k in range(4):
        assert found[0, k].item() == pytest.approx(20 * maps[0, k, 2, 3].item() / maps[0, k].sum().item(), rel=1e-5)
    assert found[1].isnan().all()
    assert saliency.outlier_tokens(Tokens(), x, torch.ones(2, 1, *GRID), "layer")[0].item() == pytest.approx(1)
    assert saliency.outlier_tokens(Tokens(), x, maps, "layer", deviations=4.4).isnan().all()
    with pytest.raises(ValueError, match=r"^saliency_map=.*grid; expected"):
        saliency.outlier_tokens(Tokens(), x, torch.ones(2, 1, 3, 3), "layer")


@pytest.mark.parametrize("method", ["raw_attention", "attention_rollout"])
def test_what_is_in_front_of_the_last_attention_is_not_kept(method, monkeypatch):
    """Nothing of it is needed for what the score reads; where something is, the model runs once more."""
    kept, watched, load = [], [], Attending.forgetting

    def forgetting(self):
        kept.append(self._saved)
        watched.append(self)
        return load(self)

    monkeypatch.setattr(Attending, "forgetting", forgetting)
    for depth in (2, 6):
        model, passes = twins(partial(Transformer, depth=depth))[0], []
        model.register_forward_pre_hook(lambda *args, passes=passes: passes.append(1))
        saliency.METHODS[method].function(model, images(), 1)
        assert len(passes) == 1
    assert 0 < len(kept[0]) == len(kept[1])
    assert {of.block for attending in watched for of in attending.found} == {None}

    class Aside(torch.nn.Module):
        """Another attention comes later, and the score does not depend on it."""

        def __init__(self) -> None:
            super().__init__()
            self.net, self.aside = twins(Transformer)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.net(x), self.aside(x)

    model = Aside()
    found = saliency.METHODS[method].function(model, images(), 1)
    assert torch.equal(found, saliency.METHODS[method].function(model.net, images(), 1))
