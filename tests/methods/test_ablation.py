"""Feature ablation, permutation and occlusion: the definitions, one run of the model for each feature and sample."""

import itertools
import math
import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saliency import feature_ablation, feature_permutation, occlusion
from tests import cases
from tests.cases import NOTICES
from tests.engine.test_tail import Convolutions

METHODS = {"feature_ablation": feature_ablation, "feature_permutation": feature_permutation, "occlusion": occlusion}
K_TARGETS = torch.tensor([[0, 3], [2, 1]])


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(ours, expected):
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-11 * float(expected.abs().max()))


def behind(model, layer, input, sample):
    """The activation (1, ...) of a layer for one sample, and the model's scores for another in its place."""
    image = input[sample : sample + 1]
    if not layer:
        return image.clone(), lambda x: model(x.clone())[0].detach()
    module, kept = model.get_submodule(layer), []
    hook = module.register_forward_hook(lambda module, args, output: kept.append(output.detach().clone()))
    model(image.clone())
    hook.remove()

    def run(x):
        hook = module.register_forward_hook(lambda module, args, output: x.clone())
        scores = model(image.clone())[0].detach()
        hook.remove()
        return scores

    return kept[-1], run


def by_feature(model, layer, input, targets, mask, changed) -> Tensor:
    """Attributions (N, K, ...): the fall of the score when the entries of a feature are those of ``changed``."""
    maps = []
    for sample in range(len(input)):
        x, run = behind(model, layer, input, sample)
        own = mask[min(sample, len(mask) - 1)].expand(x.shape[1:])
        attribution = torch.zeros(len(targets[sample]), *x.shape[1:], dtype=x.dtype)
        for feature in own.unique():
            where = own == feature
            other = x.clone()
            other[0][where] = changed(sample, x)[0][where]
            fall = (run(x) - run(other))[targets[sample]]
            for k in range(len(fall)):
                attribution[k][where] = fall[k]
        maps.append(attribution)
    return torch.stack(maps)


def numbers(*shape):
    return torch.arange(math.prod(shape)).view(1, *shape)


MASKS = {
    "entries": lambda shape: numbers(*shape),
    "channels": lambda shape: numbers(shape[0], *[1] * (len(shape) - 1)),
    "positions": lambda shape: numbers(1, *shape[1:]),
    "blocks, numbers with gaps": lambda shape: numbers(*shape) // 7 * 5 - 3,
    "of each sample": lambda shape: torch.stack([numbers(*shape)[0] % 4, numbers(*shape)[0] // 9]),
}
PLACES = {
    "in place": ["", "features.0", "features"],
    "residual": ["stem", "shortcut", "norm"],
    "transformer": ["blocks.0"],
}
PLACES["channels last"] = ["mlp"]
OF_NAME = {case.name: case for case in cases.MODEL_CASES}
SMALL = {"in place": (2, 3, 5, 4), "residual": (2, 3, 5, 4)}  # one run an entry


def small(name):
    case = OF_NAME[name]
    return case.model(), draw(*SMALL[name]) if name in SMALL else case.input()


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(("name", "layer"), [(name, layer) for name, layers in PLACES.items() for layer in layers])
def test_feature_ablation(name, layer, mask):
    model, input = small(name)
    shape = behind(model, layer, input, 0)[0].shape[1:]
    features = MASKS[mask](shape)
    expected = by_feature(model, layer, input, K_TARGETS, features, lambda sample, x: torch.zeros_like(x))
    given = None if mask == "entries" else features
    close(feature_ablation(model, input, K_TARGETS, layer, given, reduction=None), expected)


@pytest.mark.parametrize("layer", ["", "features"])
@NOTICES
def test_baselines(layer):
    model, input = small("in place")
    shape = behind(model, layer, input, 0)[0].shape[1:]
    mask, number = MASKS["channels"](shape), "layer_baselines" if layer else "baselines"
    for baseline in (0.5, 2, draw(1, *shape), draw(2, *shape), torch.ones(1, *shape)):
        values = torch.as_tensor(baseline, dtype=torch.float64).expand(2, *shape)
        expected = by_feature(model, layer, input, [[1], [1]], mask, lambda sample, x, v=values: v[sample : sample + 1])
        found = feature_ablation(model, input, 1, layer, mask, reduction=None, **{number: baseline})
        close(found, expected[:, 0])


def windows_of(shape, window, stride):
    """All windows as slices; they start at multiples of the stride, the last is the first that reaches the end."""
    starts = []
    for side, width, step in zip(shape, window, stride, strict=True):
        own = [0]
        while own[-1] + width < side:
            own.append(own[-1] + step)
        starts.append([slice(start, min(start + width, side)) for start in own])
    return list(itertools.product(*starts))


def by_window(model, layer, input, targets, window, stride, baseline) -> Tensor:
    maps = []
    for sample in range(len(input)):
        x, run = behind(model, layer, input, sample)
        total, count = torch.zeros(len(targets[sample]), *x.shape[1:], dtype=x.dtype), torch.zeros(x.shape[1:])
        for place in windows_of(x.shape[1:], window, stride):
            other = x.clone()
            other[0][place] = baseline[sample][place]
            fall = (run(x) - run(other))[targets[sample]]
            for k in range(len(fall)):
                total[k][place] += fall[k]
            count[place] += 1
        maps.append(total / count)
    return torch.stack(maps)


WINDOWS = {"rest": ((3, 2, 3), (3, 2, 2)), "channels": ((1, 3, 3), (1, 2, 3)), "overlap": ((2, 4, 2), (1, 1, 1))}


@pytest.mark.parametrize("layer", ["", "features.0"])
@pytest.mark.parametrize("case", WINDOWS)
@NOTICES
def test_occlusion(case, layer):
    model, input = small("in place")
    window, stride = WINDOWS[case]
    shape = behind(model, layer, input, 0)[0].shape[1:]
    for given in (None, 0.25, draw(1, *shape), draw(2, *shape)):
        baseline = torch.as_tensor(0 if given is None else given, dtype=torch.float64).expand(2, *shape)
        expected = by_window(model, layer, input, K_TARGETS, window, stride, baseline)
        close(occlusion(model, input, K_TARGETS, layer, window, stride, given, reduction=None), expected)


def test_occlusion_s_own_windows():
    model, input = cases.IN_PLACE.model(), draw(1, 3, 17, 30)
    assert torch.equal(occlusion(model, input, 1), occlusion(model, input, 1, "", (3, 3, 4), (1, 1, 2)))
    assert torch.equal(occlusion(model, input, 1, "", 2, 1), occlusion(model, input, 1, "", (2, 2, 2), (1, 1, 1)))


def test_a_window_larger_than_the_input_is_all_of_it():
    model, input = small("in place")
    fall = (model(input) - model(torch.zeros_like(input)))[:, 1].detach()
    close(occlusion(model, input, 1, "", 99, reduction=None), fall[:, None, None, None].expand_as(input))


@pytest.mark.parametrize("layer", ["", "features.0", "features"])
def test_feature_permutation(layer):
    """Every feature's falls are those of one permutation of the batch, which is not the identity."""
    model, input = cases.IN_PLACE.model(), draw(4, 3, 5, 4)
    x, runs = zip(*(behind(model, layer, input, sample) for sample in range(4)), strict=True)
    mask = MASKS["channels"](x[0].shape[1:])
    ours = feature_permutation(model, input, K_TARGETS[:1].expand(4, -1), layer, mask, reduction=None)
    used = []
    for channel in range(x[0].shape[1]):
        falls = torch.zeros(4, 4, 2, dtype=torch.float64)  # of a sample, with the channel of another
        for sample, other in itertools.product(range(4), range(4)):
            changed = x[sample].clone()
            changed[0, channel] = x[other][0, channel]
            falls[sample, other] = (runs[sample](x[sample]) - runs[sample](changed))[K_TARGETS[0]]
        found = ours[:, :, channel].flatten(2)
        assert (found == found[..., :1]).all()
        moved = [p for p in itertools.permutations(range(4)) if p != (0, 1, 2, 3)]
        errors = torch.stack([(falls[range(4), p] - found[..., 0]).abs().max() for p in moved])
        assert errors.min() < 1e-12
        used.append(moved[int(errors.argmin())])
    if layer:  # six channels
        assert len(set(used)) > 1
    assert not torch.equal(ours, feature_permutation(model, input, 1, layer, mask, seed=1, reduction=None))


@pytest.mark.parametrize("samples", [2, 3])
def test_no_permutation_is_the_identity(samples):
    """A linear score of one channel each: a fall is 0 in all samples if and only if nothing moves."""
    input = torch.arange(1.0, 1 + samples * 300).view(samples, 300, 1, 1).double()
    found = feature_permutation(nn.Flatten(), input, lambda output: output.sum(1), "", reduction=None)
    assert (found != 0).any(0).all()
    close(found.sum(0), torch.zeros(300, 1, 1, dtype=torch.float64))


@pytest.mark.parametrize("layer", ["", "features"])
@pytest.mark.parametrize("method", METHODS)
def test_chunks_change_nothing_but_rounding(method, layer):
    model, input = cases.IN_PLACE.model(), draw(3, 3, 6, 5)
    target = torch.tensor([[0, 1], [2, 3], [1, 1]])
    one, three, many = (
        METHODS[method](model, input, target, layer, perturbations_per_eval=size, reduction=None) for size in (1, 3, 32)
    )
    close(one, many)
    close(three, many)


@pytest.mark.parametrize("method", METHODS)
def test_no_more_variants_than_asked_for_run_together(method):
    model, input, rows = cases.IN_PLACE.model(), draw(3, 3, 6, 5), []
    model.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    METHODS[method](model, input, 1, "", perturbations_per_eval=2)
    assert set(rows) == {1, 2} or set(rows) == {2}


def test_a_linear_model_is_explained_exactly():
    weight, x, start = draw(1, 24, seed=1), draw(2, 2, 3, 4), draw(1, 2, 3, 4, seed=2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(24, 1).double())
    model[1].weight.data = weight
    own = weight.view(1, 2, 3, 4) * (x - start)
    close(feature_ablation(model, x, 0, "", baselines=start, reduction=None), own)
    close(feature_ablation(model, x, 0, "", baselines=start), own.sum(1, keepdim=True))
    close(occlusion(model, x, 0, "", 1, 1, baselines=start, reduction=None), own)
    close(
        occlusion(model, x, 0, "", (2, 1, 1), 1, baselines=start), 2 * own.sum(1, keepdim=True)
    )  # each channel has both
    swapped = weight.view(1, 2, 3, 4) * (x - x.flip(0))  # the one permutation of two that is not the identity
    close(feature_permutation(model, x, 0, "", reduction=None), swapped)


class Two(nn.Module):
    """Two inputs of floating point, and between them integers, which are not changed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.embedding, self.linear = nn.Conv2d(1, 2, 2), nn.Embedding(5, 2), nn.Linear(3, 2)

    def forward(self, x: Tensor, index: Tensor, y: Tensor) -> Tensor:
        hidden = self.conv(x).relu().mean((2, 3)) * self.embedding(index).sum(1)
        return hidden * self.linear(y).tanh() + hidden.square()


def two():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Two().double()
    return model, (draw(2, 1, 3, 3), torch.tensor([[0, 4], [2, 2]]), draw(2, 3, seed=3))


def test_inputs_of_several_tensors():
    model, (x, index, y) = two()
    start = (draw(1, 1, 3, 3, seed=4), None, 0.25)
    ours = feature_ablation(model, (x, index, y), 1, "", baselines=start, reduction=None)
    assert isinstance(ours, tuple)
    expected = [torch.zeros_like(x), torch.zeros_like(y)]
    for number, (moving, hidden) in enumerate(((x, start[0].expand_as(x)), (y, torch.full_like(y, 0.25)))):
        for at in itertools.product(*map(range, moving.shape)):
            other = moving.clone()
            other[at] = hidden[at]
            inputs = (other, index, y) if number == 0 else (x, index, other)
            expected[number][at] = (model(x, index, y) - model(*inputs))[at[0], 1].detach()
    assert len(ours) == 2
    for found, wanted in zip(ours, expected, strict=True):
        close(found, wanted)


def test_masks_of_several_inputs():
    model, (x, index, y) = two()
    masks = (torch.zeros(1, 1, 1, 1, dtype=torch.long), None, torch.tensor([[0, 1, 1]]))
    first, second = feature_ablation(model, (x, index, y), 1, "", feature_mask=masks, reduction=None)
    known = model(x, index, y)[:, 1].detach()
    for found, inputs in (
        (first[:, 0, 1, 2], (torch.zeros_like(x), index, y)),
        (second[:, 0], (x, index, y * torch.tensor([0, 1, 1]))),
        (second[:, 1], (x, index, y * torch.tensor([1, 0, 0]))),
        (second[:, 2], (x, index, y * torch.tensor([1, 0, 0]))),
    ):
        close(found, known - model(*inputs)[:, 1].detach())


def test_each_layer_of_a_list_and_the_input_have_their_own_mask_and_baselines():
    model, input = small("in place")
    at_layer, at_input = numbers(6, 1, 1), numbers(1, 5, 4)
    options = {"layer_mask": at_layer, "feature_mask": at_input, "layer_baselines": 0.5, "baselines": -1.0}
    both = feature_ablation(model, input, 1, ["features", ""], **options)
    close(both[0], feature_ablation(model, input, 1, "features", at_layer, 0.5))
    close(both[1], feature_ablation(model, input, 1, "", feature_mask=at_input, baselines=-1.0))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["transformer", "channels last"])
def test_maps_have_the_grid_of_the_layer(method, name):
    case = OF_NAME[name]
    model, input, layer = case.model(), case.input(), case.layers[0]
    found = METHODS[method](model, input, K_TARGETS, layer)
    raw = METHODS[method](model, input, K_TARGETS, layer, reduction=None)
    assert raw.shape[2:] == behind(model, layer, input, 0)[0].shape[1:]
    grid = raw[:, :, 1:].sum(3).unflatten(2, case.grid) if name == "transformer" else raw.sum(4)
    close(found, grid)
    first = METHODS[method](model, input, K_TARGETS, layer, reduction=lambda x: x[:, :1])
    chosen = raw[:, :, 1:, 0].unflatten(2, case.grid) if name == "transformer" else raw[..., 0]
    close(first, chosen)


@pytest.mark.parametrize("dimensions", [1, 3])
def test_layers_of_one_and_three_dimensions(dimensions):
    conv = (nn.Conv1d, None, nn.Conv3d)[dimensions - 1]
    model = nn.Sequential(conv(2, 3, 2), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(3 * 2**dimensions, 4)).double()
    input, shape = draw(2, 2, *[3] * dimensions), (3, *[2] * dimensions)
    for layer, sides in (("", (2, *[3] * dimensions)), ("0", shape)):
        expected = by_feature(model, layer, input, K_TARGETS, numbers(*sides), lambda sample, x: torch.zeros_like(x))
        close(feature_ablation(model, input, K_TARGETS, layer, reduction=None), expected)
        close(occlusion(model, input, K_TARGETS, layer, 1, 1, reduction=None), expected)
        window, stride = (2,) * len(sides), (1,) * len(sides)
        expected = by_window(model, layer, input, K_TARGETS, window, stride, torch.zeros(2, *sides).double())
        close(occlusion(model, input, K_TARGETS, layer, window, stride, reduction=None), expected)


@pytest.mark.parametrize("method", METHODS)
def test_the_front_runs_once(method):
    """Two samples; the stem and the convolution behind it are the front, the last convolution is the tail."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.front = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
            self.tail = nn.Conv2d(4, 5, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.tail(F.relu(self.front(x))).mean((2, 3))

    model, input = Net().eval(), draw(2, 3, 8, 7).float()
    options = {"sliding_window_shapes": 1, "strides": 1} if method == "occlusion" else {}
    with Convolutions() as seen:
        METHODS[method](model, input, 1, "front", perturbations_per_eval=5, **options)
    runs = 2 * 4 * 4 * 3
    # The batch: does the score depend on the layer? Each sample: the front and the tail, recorded; the tail on two
    # rows, its own among them; the tail on the activation. All else are the variants, in the tail alone.
    batch, sample = 3 * 2, 3 + 2 + 1
    assert sum(seen.rows) == batch + 2 * sample + runs
    assert max(seen.rows) == 5


WRONG = {
    "mask": (feature_ablation, {"feature_mask": torch.zeros(1, 2, 5, 4).long()}, "feature_mask=a tensor of shape"),
    "mask of floats": (feature_ablation, {"feature_mask": torch.zeros(1, 3, 5, 4)}, "expected an integer tensor"),
    "no mask": (feature_permutation, {"feature_mask": "channels"}, "feature_mask=a str does not fit"),
    "samples": (feature_permutation, {"feature_mask": torch.zeros(3, 3, 5, 4).long()}, "for one sample or for all"),
    "masks": (
        feature_ablation,
        {"feature_mask": (None, None)},
        "feature_mask=2 values do not fit; expected 1, one per",
    ),
    "baselines": (feature_ablation, {"baselines": draw(1, 3, 4, 5)}, "baselines=a tensor of shape (1, 3, 4, 5) is not"),
    "name": (feature_ablation, {"baselines": "zero"}, "baselines='zero' is not a baseline"),
    "two baselines": (occlusion, {"baselines": (0, 0)}, "baselines=2 values do not fit; expected 1, one per input"),
    "window": (occlusion, {"sliding_window_shapes": (3, 3)}, "sliding_window_shapes=(3, 3) does not fit (3, 5, 4)"),
    "no window": (occlusion, {"sliding_window_shapes": 0}, "sliding_window_shapes=0 does not fit"),
    "stride": (occlusion, {"strides": (1, 0, 1)}, "strides=(1, 0, 1) does not fit (3, 5, 4); expected an int >= 1"),
    "gaps": (occlusion, {"sliding_window_shapes": 2, "strides": (1, 3, 1)}, "strides=[1, 3, 1] leaves gaps"),
    "seed": (feature_permutation, {"seed": -1}, "seed=-1"),
    "chunk": (occlusion, {"perturbations_per_eval": 0}, "perturbations_per_eval=0"),
    "reduction": (occlusion, {"reduction": "sum"}, "reduction='sum' is not a reduction"),
}


@pytest.mark.parametrize("case", WRONG)
def test_errors_come_before_the_first_forward_pass(case):
    method, options, message = WRONG[case]
    model, input = small("in place")
    model.register_forward_pre_hook(lambda module, args: pytest.fail("it ran"))
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        method(model, input, 1, "", **options)
    assert "\n" not in str(error.value)


def test_one_sample_has_nothing_to_permute():
    model, input = small("in place")
    model.register_forward_pre_hook(lambda module, args: pytest.fail("it ran"))
    for layer in ("", "features", None):
        with pytest.raises(ValueError, match=r"input=.* 1 sample .*; expected a batch of two or more\."):
            feature_permutation(model, input[:1], 1, layer)


def test_a_layer_s_mask_that_does_not_fit_is_named():
    model, input = small("in place")
    with pytest.raises(ValueError, match=r"layer_mask=a tensor of shape \(1, 4, 1, 1\) does not fit .*\(2, 6, 3, 2\)"):
        feature_ablation(model, input, 1, "features", numbers(4, 1, 1))


@pytest.mark.parametrize("method", METHODS)
def test_progress(method):
    model, input = small("in place")
    told = []
    METHODS[method](model, input, 1, "", perturbations_per_eval=7, progress=lambda *step: told.append(step))
    total = told[-1][1]
    assert told == [(min(7 * (i + 1), total), total) for i in range(math.ceil(total / 7))]
