"""Captum's ablations, occlusion and permutation, before any reduction to a map, on small networks in float64."""

from copy import deepcopy
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

import saliency
from tests import cases
from tests.engine.test_tail import UNet
from tests.methods.test_ablation import by_feature
from tests.parity.agreement import assert_agree, relative_error

peer = pytest.importorskip("captum.attr")

pytestmark = pytest.mark.parity


class TwoImages(nn.Module):
    """Two inputs that meet in a product, and an integer one."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(2, 3, 3), nn.Conv2d(1, 3, 2)
        self.embedding, self.head = nn.Embedding(4, 3), nn.Linear(3, 4)

    def forward(self, x: Tensor, y: Tensor, words: Tensor) -> Tensor:
        hidden = self.left(x).relu().mean((2, 3)) * self.right(y).tanh().amax((2, 3))
        return self.head(hidden + hidden * self.embedding(words).sum(1))


class Pooled(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x).square().mean((2, 3))


class OneAndThree(nn.Module):
    def __init__(self, conv: type[nn.Module]) -> None:
        super().__init__()
        self.first, self.relu, self.second = conv(2, 3, 2), nn.ReLU(inplace=True), conv(3, 4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.relu(self.first(x))).flatten(2).logsumexp(2)


class Case(NamedTuple):
    build: object
    shapes: tuple
    layers: tuple


CASES = {
    "in place": Case(cases.InPlace, ((2, 3, 6, 5),), ("features.0", "features.3", "features")),
    "residual": Case(cases.Residual, ((2, 3, 6, 5),), ("stem", "shortcut", "norm", "relu")),
    "u-net": Case(lambda: Pooled(UNet()), ((2, 2, 6, 4),), ("network.down1", "network.middle", "network.up1")),
    "conv1d": Case(lambda: OneAndThree(nn.Conv1d), ((2, 2, 7),), ("first", "relu", "second")),
    "conv3d": Case(lambda: OneAndThree(nn.Conv3d), ((2, 2, 3, 4, 3),), ("first", "relu", "second")),
    "two images": Case(TwoImages, ((2, 2, 5, 4), (2, 1, 4, 3)), ("left", "right")),
}
LAYERS = [(name, layer) for name, case in CASES.items() for layer in case.layers]
TARGETS = {"int": 1, "of each": torch.tensor([0, 1])}


def given(name):
    """A model, its inputs that are explained, and what is handed on."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CASES[name].build().double().eval()
        inputs = tuple(torch.randn(shape, dtype=torch.float64) for shape in CASES[name].shapes)
    extra = torch.tensor([[0, 3], [1, 1]]) if name == "two images" else None
    return model, inputs if len(inputs) > 1 else inputs[0], {"additional_forward_args": extra}


def tensors(result):
    return result if isinstance(result, tuple) else (result,)


def agree(ours, theirs):
    for pair in zip(tensors(ours), tensors(theirs), strict=True):
        assert_agree(*pair, tolerance=1e-7)


def each(name, make):
    """Something for each of the inputs: a tuple for a tuple."""
    made = tuple(make(shape) for shape in CASES[name].shapes)
    return made if len(made) > 1 else made[0]


def masks(name, make):
    """Masks whose numbers differ from input to input: equal ones are one feature of both for Captum, two for ours."""
    if make is None:
        return None
    made = tuple(make(shape) + 1000 * at for at, shape in enumerate(CASES[name].shapes))
    return made if len(made) > 1 else made[0]


def numbers(shape):
    return torch.arange(torch.Size(shape[1:]).numel()).view(1, *shape[1:])


def draw(shape, seed=5):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


MASKS = {
    "entries": None,
    "blocks": lambda shape: numbers(shape) // 5,
    "channels": lambda shape: torch.arange(shape[1]).view(1, -1, *[1] * (len(shape) - 2)),
}
BASELINES = {
    "none": None,
    "number": lambda shape: 2,
    "one sample": lambda shape: draw((1, *shape[1:])),
    "all samples": draw,
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", CASES)
def test_feature_ablation_of_the_input(name, mask, target):
    model, inputs, extra = given(name)
    features = masks(name, MASKS[mask])
    theirs = peer.FeatureAblation(deepcopy(model)).attribute(
        inputs, target=TARGETS[target], feature_mask=features, **extra
    )
    ours = saliency.feature_ablation(model, inputs, TARGETS[target], "", feature_mask=features, reduction=None, **extra)
    agree(ours, theirs)


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("name", CASES)
def test_baselines_of_the_input(name, baseline):
    model, inputs, extra = given(name)
    baselines = BASELINES[baseline] and each(name, BASELINES[baseline])
    theirs = peer.FeatureAblation(deepcopy(model)).attribute(inputs, baselines, 1, **extra)
    ours = saliency.feature_ablation(model, inputs, 1, "", baselines=baselines, reduction=None, **extra)
    agree(ours, theirs)


def shape_at(model, layer, side, inputs, extra):
    kept = []
    hook = model.get_submodule(layer).register_forward_hook(
        lambda module, args, output: kept.append((args[0] if side else output).shape)
    )
    model(*tensors(inputs), *[value for value in extra.values() if value is not None])
    hook.remove()
    return kept[-1]


@pytest.mark.parametrize("side", [False, True], ids=["output", "input"])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(("name", "layer"), LAYERS)
def test_feature_ablation_of_a_layer(name, layer, mask, side):
    model, inputs, extra = given(name)
    if (name, layer, side) == ("residual", "norm", False):
        pytest.skip("`out += identity` overwrites the activation that Captum ablates: see below")
    copy, shape = deepcopy(model), shape_at(model, layer, side, inputs, extra)
    for baseline in ("none", "number", "one sample", "all samples"):
        features = MASKS[mask] and MASKS[mask](shape)
        start = BASELINES[baseline] and BASELINES[baseline](shape)
        theirs = peer.LayerFeatureAblation(copy, copy.get_submodule(layer)).attribute(
            inputs, start, 1, extra["additional_forward_args"], features, attribute_to_layer_input=side
        )
        ours = saliency.feature_ablation(
            model, inputs, 1, layer, features, start, reduction=None, attribute_to_layer_input=side, **extra
        )
        agree(ours, theirs)


def test_an_activation_that_the_network_overwrites_is_ablated_as_it_was():
    """`out += identity`, then an in-place ReLU: Captum keeps the tensor itself, and so ablates what became of it."""
    model, input, _ = given("residual")
    copy = deepcopy(model)
    theirs = peer.LayerFeatureAblation(copy, copy.norm).attribute(input, target=1)
    mask = numbers(theirs.shape)
    expected = by_feature(model, "norm", input, [[1], [1]], mask, lambda sample, x: torch.zeros_like(x))[:, 0]
    assert relative_error(theirs, expected) > 0.5
    agree(saliency.feature_ablation(model, input, 1, "norm", reduction=None), expected)


@pytest.mark.parametrize("size", [1, 3])
def test_perturbations_per_eval(size):
    model, inputs, _ = given("residual")
    theirs = peer.FeatureAblation(deepcopy(model)).attribute(inputs, target=1, perturbations_per_eval=size)
    for own in (1, 3, 32):
        ours = saliency.feature_ablation(model, inputs, 1, "", perturbations_per_eval=own, reduction=None)
        agree(ours, theirs)


WINDOWS = {
    "one": (lambda shape: (1,) * (len(shape) - 1), None),
    "channels": (lambda shape: (shape[1], *[2] * (len(shape) - 2)), lambda shape: (shape[1], *[1] * (len(shape) - 2))),
    "apart": (lambda shape: (1, *[2] * (len(shape) - 2)), lambda shape: (1, *[2] * (len(shape) - 2))),
    "a rest": (lambda shape: (1, *[3] * (len(shape) - 2)), lambda shape: (1, *[2] * (len(shape) - 2))),
    "a number": (lambda shape: (1, *[2] * (len(shape) - 2)), lambda shape: 1),
}


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("case", WINDOWS)
@pytest.mark.parametrize("name", [name for name in CASES if len(CASES[name].shapes) == 1])
def test_occlusion(name, case, baseline):
    model, inputs, _ = given(name)
    (shape,) = CASES[name].shapes
    window, stride = (make and make(shape) for make in WINDOWS[case])
    baselines = BASELINES[baseline] and BASELINES[baseline](shape)
    theirs = peer.Occlusion(deepcopy(model)).attribute(inputs, window, stride, baselines, 1)
    # Captum's stride is 1 where it is left out, ours half of the window.
    ours = saliency.occlusion(model, inputs, 1, "", window, stride or 1, baselines, reduction=None)
    agree(ours, theirs)


def test_occlusion_of_several_inputs():
    model, inputs, extra = given("two images")
    windows, strides = ((2, 2, 2), (1, 2, 2)), ((1, 1, 1), (1, 1, 1))
    theirs = peer.Occlusion(deepcopy(model)).attribute(inputs, windows, strides, target=1, **extra)
    first = saliency.occlusion(model, inputs, 1, "", (2, 2, 2), 1, reduction=None, **extra)[0]
    second = saliency.occlusion(model, inputs, 1, "", (1, 2, 2), 1, reduction=None, **extra)[1]
    agree((first, second), theirs)
    windows = (1, 2, 2)
    theirs = peer.Occlusion(deepcopy(model)).attribute(inputs, (windows, windows), target=1, **extra)
    agree(saliency.occlusion(model, inputs, 1, "", windows, 1, reduction=None, **extra), theirs)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", CASES)
def test_feature_permutation(name, mask):
    """Of two samples there is one permutation that is not the identity: given to Captum, both must agree."""
    model, inputs, extra = given(name)
    features = masks(name, MASKS[mask])

    def swap(x: Tensor, feature_mask: Tensor) -> Tensor:
        return torch.where(feature_mask.bool(), x.flip(0), x)

    theirs = peer.FeaturePermutation(deepcopy(model), swap).attribute(inputs, 1, feature_mask=features, **extra)
    ours = saliency.feature_permutation(model, inputs, 1, "", feature_mask=features, reduction=None, **extra)
    agree(ours, theirs)


@pytest.mark.parametrize("seed", [0, 1])
def test_feature_permutation_of_five_samples(seed):
    """Our permutations are read off a batch that numbers its samples; Captum is given the same."""
    model, samples = cases.InPlace().double().eval(), 5
    input = draw((samples, 3, 6, 5))
    mask = MASKS["channels"](input.shape)
    # f of this model is the number of the sample whose channel c it sees: what falls, tells the permutation.
    marked = (10.0 ** torch.arange(3).view(3, 1, 1) * torch.arange(samples).view(-1, 1, 1, 1)).expand(samples, 3, 6, 5)
    falls = saliency.feature_permutation(
        nn.Flatten(), marked.double(), lambda x: x.view(-1, 3, 30)[..., 0].sum(1), "", mask, seed, reduction=None
    )
    moved = (marked - falls)[..., 0, 0] / 10.0 ** torch.arange(3)
    orders = iter(moved.round().long().T)

    def permute(x: Tensor, feature_mask: Tensor) -> Tensor:
        return torch.where(feature_mask.bool(), x[next(orders)], x)

    theirs = peer.FeaturePermutation(deepcopy(model), permute).attribute(input, 1, feature_mask=mask)
    agree(saliency.feature_permutation(model, input, 1, "", mask, seed, reduction=None), theirs)


class Skipped(nn.Module):
    """A convolution and a skip read the same tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).tanh()
        return self.head((self.conv(x).tanh() + x).mean((2, 3)))


def test_the_input_of_a_layer_is_ablated_for_that_layer_alone():
    """A skip around the layer keeps the tensor that it reads: so both, and so the sum of what each branch loses is not
    what the tensor in front of them, ablated for all of its readers, loses."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Skipped().double()
    input = draw((2, 3, 3, 4))
    copy = deepcopy(model)
    theirs = peer.LayerFeatureAblation(copy, copy.conv).attribute(input, target=1, attribute_to_layer_input=True)
    ours = saliency.feature_ablation(model, input, 1, "conv", reduction=None, attribute_to_layer_input=True)
    agree(ours, theirs)
    x = model.stem(input).tanh()
    for at in ((0, 0, 0, 0), (1, 2, 1, 3)):
        other = x.clone()
        other[at] = 0
        scores = [model.head((model.conv(seen).tanh() + x).mean((2, 3)))[at[0], 1] for seen in (x, other)]
        torch.testing.assert_close(ours[at], (scores[0] - scores[1]).detach())


def test_several_targets_with_chunks():
    """Captum has one target a call, and repeats a tensor of targets as many times as features go together: K targets
    are K of its calls, whose result does not depend on the chunks."""
    model, inputs, _ = given("in place")
    targets = torch.tensor([[0, 3, 1], [2, 1, 1]])
    ours = saliency.feature_ablation(model, inputs, targets, "", perturbations_per_eval=4, reduction=None)
    for k in range(3):
        theirs = peer.FeatureAblation(deepcopy(model)).attribute(inputs, target=targets[:, k], perturbations_per_eval=4)
        agree(ours[:, k], theirs)


def test_embeddings_are_ablated_as_a_layer():
    """At the input, integers are no features of ours; Captum replaces the index itself by 0, another word."""

    class Text(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(7, 3), nn.Linear(3, 4)

        def forward(self, words: Tensor) -> Tensor:
            return self.head(self.embedding(words).tanh().amax(1))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Text().double()
    words = torch.tensor([[1, 5, 2, 2], [3, 3, 0, 6]])
    copy = deepcopy(model)
    theirs = peer.LayerFeatureAblation(copy, copy.embedding).attribute(words, target=1)
    agree(saliency.feature_ablation(model, words, 1, "embedding", reduction=None), theirs)
