"""CAMs by scores: the papers' formulas, one run of the model for each channel or position."""

import itertools
import math
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from saliency import ablation_cam, is_cam, recipro_cam, score_cam, ss_cam
from tests import cases
from tests.cases import NOTICES
from tests.engine.test_tail import Convolutions
from tests.methods.test_ablation import K_TARGETS, OF_NAME, behind, close, draw, two

METHODS = {
    "score_cam": (score_cam, {}),
    "ss_cam": (ss_cam, {"num_samples": 3, "std": 0.5}),
    "is_cam": (is_cam, {"num_samples": 3}),
    "ablation_cam": (ablation_cam, {}),
    "recipro_cam": (recipro_cam, {}),
}
PLACES = [("in place", "features.0"), ("residual", "stem"), ("residual", "shortcut"), ("transformer", "blocks.0")]
PLACES += [("channels last", "mlp"), ("in place", "")]


def grid_of(x, name):
    """The activation (1, ...) as (C, h, w)."""
    if name == "transformer":
        return x[0, 1:].T.unflatten(1, OF_NAME[name].grid)
    return x[0].movedim(-1, 0) if name == "channels last" else x[0]


def with_grid(x, name, grid):
    """The activation (1, ...) with another grid (C, h, w); a class token stays."""
    x = x.clone()
    if name == "transformer":
        x[0, 1:] = grid.flatten(1).T
    else:
        x[0] = grid.movedim(0, -1) if name == "channels last" else grid
    return x


def class_map(weights, grid):
    """max(0, sum_c w_c x_c)."""
    total = torch.zeros(grid.shape[1:], dtype=grid.dtype)
    for weight, channel in zip(weights, grid, strict=True):
        total += weight * channel
    return total.clamp(min=0)


def score_of_mask(model, image, channel, target, change=lambda mask: mask):
    """f_k of the image (1, C, ...) times the channel, brought to its size, then scaled to [0, 1], then changed."""
    mode = ("linear", "bilinear", "trilinear")[channel.ndim - 1]
    mask = F.interpolate(channel[None, None], image.shape[2:], mode=mode)[0, 0]
    mask = (mask - mask.min()) / (mask.max() - mask.min()) if mask.max() > mask.min() else torch.zeros_like(mask)
    return float(model(image * change(mask))[0, target])


def softmax(scores):
    total = sum(math.exp(score) for score in scores)
    return [math.exp(score) / total for score in scores]


def noises(image, count, std):
    """What the documentation says: one generator, seed 0, one draw of the image's size after the other."""
    generator = torch.Generator().manual_seed(0)
    return [torch.empty(image.shape[2:]).normal_(0, std, generator=generator).double() for _ in range(count)]


def formula(method, model, name, layer, image, x, run, target):
    """The map (h, w) of one sample and target."""
    grid = grid_of(x, name)
    if method == "score_cam":
        return class_map(softmax([score_of_mask(model, image, channel, target) for channel in grid]), grid)
    if method in ("ss_cam", "is_cam"):
        if method == "ss_cam":
            changes = [lambda mask, noise=noise: mask + noise for noise in noises(image, 3, 0.5)]
        else:
            changes = [lambda mask, part=part: mask * part / 3 for part in (1, 2, 3)]
        means = [
            sum(score_of_mask(model, image, channel, target, change) for change in changes) / 3 for channel in grid
        ]
        return class_map(softmax(means), grid)
    known = float(run(x)[target])
    if method == "ablation_cam":
        weights = []
        for c in range(len(grid)):
            ablated = grid.clone()
            ablated[c] = 0
            weights.append((known - float(run(with_grid(x, name, ablated))[target])) / known)
        return class_map(weights, grid)
    found = torch.zeros(grid.shape[1:], dtype=grid.dtype)
    for u in itertools.product(*map(range, grid.shape[1:])):
        seen = torch.zeros_like(grid)
        for near in itertools.product(*map(range, grid.shape[1:])):
            distances = [abs(a - b) for a, b in zip(u, near, strict=True)]
            if max(distances) <= 1:
                seen[(slice(None), *near)] = grid[(slice(None), *near)] * math.prod(
                    0.25 if distance else 0.5 for distance in distances
                )
        found[u] = run(with_grid(x, name, seen))[target]
    return found


@pytest.mark.parametrize(("name", "layer"), PLACES)
@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_formula(method, name, layer):
    case, (function, options) = OF_NAME[name], METHODS[method]
    model, input = case.model(), draw(2, 3, 6, 8) if layer == "" else case.input()
    maps = []
    for sample in range(2):
        x, run = behind(model, layer, input, sample)
        image = input[sample : sample + 1]
        maps.append([formula(method, model, name, layer, image, x, run, int(k)) for k in K_TARGETS[sample]])
    expected = torch.stack([torch.stack(each) for each in maps])
    assert expected.abs().amax((2, 3)).gt(0).any(1).all()
    close(function(model, input, K_TARGETS, layer, **options), expected)


@pytest.mark.parametrize("dimensions", [1, 3])
@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_layers_of_one_and_three_dimensions(method, dimensions):
    conv, (function, options) = (nn.Conv1d, None, nn.Conv3d)[dimensions - 1], METHODS[method]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = nn.Sequential(conv(2, 3, 2), nn.ReLU(True), nn.Flatten(), nn.Linear(3 * 3**dimensions, 4)).double()
    input = draw(1, 2, *[4] * dimensions)
    x, run = behind(model, "1", input, 0)
    expected = formula(method, model, "", "1", input, x, run, 2)
    assert expected.abs().max() > 0
    close(function(model, input, 2, "1", **options), expected[None, None])


@pytest.mark.parametrize("method", METHODS)
def test_chunks_change_nothing_but_rounding(method):
    model, input = cases.IN_PLACE.model(), cases.IN_PLACE.input()
    function, options = METHODS[method]
    one, three, many = (
        function(model, input, K_TARGETS, "features.0", perturbations_per_eval=size, **options) for size in (1, 3, 32)
    )
    close(one, many)
    close(three, many)


@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_the_first_of_several_inputs_with_positions_is_masked(method):
    function, options = METHODS[method]
    model, (x, index, y) = two()
    maps = []
    for sample in range(2):
        row = slice(sample, sample + 1)

        def alone(image, row=row):
            return model(image, index[row], y[row])

        found = {}
        hook = model.conv.register_forward_hook(lambda module, args, output, found=found: found.update(x=output))
        alone(x[row])
        hook.remove()

        def run(activation, alone=alone, row=row):
            hook = model.conv.register_forward_hook(lambda module, args, output: activation.clone())
            scores = alone(x[row])[0]
            hook.remove()
            return scores

        maps.append(formula(method, alone, "", "conv", x[row], found["x"], run, 1)[None])
    close(function(model, (x, index, y), 1, "conv", **options), torch.stack(maps))


def test_a_linear_network_is_explained_exactly():
    """Behind the layer, f = sum_c v_c sum_u x_cu: w_c = v_c sum_u x_cu / f, and all that is known in closed form."""
    x, v = draw(1, 3, 4, 5).abs(), torch.tensor([2.0, 0.5, 1.0], dtype=torch.float64)
    head = nn.Conv2d(3, 1, 1, bias=False).double()
    head.weight.data = v.view(1, 3, 1, 1)
    model = nn.Sequential(nn.Identity(), head, nn.Flatten())

    def target(output):
        return output.sum(1)

    shares = v * x.sum((0, 2, 3))
    expected = (shares / shares.sum()).view(1, 3, 1, 1) * x
    close(ablation_cam(model, x, target, "0"), expected.sum(1, keepdim=True))
    score = (v.view(1, 3, 1, 1) * x).sum(1, keepdim=True)
    kernel = torch.tensor([1.0, 2, 1], dtype=torch.float64) / 4
    close(recipro_cam(model, x, target, "0"), F.conv2d(score, kernel.outer(kernel)[None, None], padding=1))


def test_a_constant_channel_lets_nothing_through():
    model, input = cases.IN_PLACE.model(), cases.IN_PLACE.input()
    model.features[0].weight.data[2] = 0
    found = score_cam(model, input, 1, "features.0")
    assert found.isfinite().all()
    x, run = behind(model, "features.0", input, 0)
    with torch.no_grad():
        close(found[0, 0], formula("score_cam", model, "in place", "", input[:1], x, run, 1))


@NOTICES
def test_a_score_of_zero_has_no_share_to_lose():
    model, input = nn.Sequential(nn.Identity(), nn.Flatten()), torch.zeros(1, 2, 3, 3)
    assert not ablation_cam(model, input, 1, "0").any()


@pytest.mark.parametrize("method", ["score_cam", "ss_cam", "is_cam"])
def test_every_mask_is_one_row_of_a_forward_pass(method):
    function, options = METHODS[method]
    model, input, rows = cases.IN_PLACE.model(), cases.IN_PLACE.input(), []
    model.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    function(model, input, 1, "features.0", perturbations_per_eval=4, **options)
    masks = 2 * 5 * options.get("num_samples", 1)
    # The rest: the check that the score depends on the layer, on the batch of two.
    assert sum(rows) == masks + 2
    assert max(rows) == 4


@pytest.mark.parametrize(("method", "variants"), [("ablation_cam", 5), ("recipro_cam", 11 * 14)])
def test_the_front_runs_once(method, variants):
    """The first convolution is the front, the second is the tail: all variants pass the second alone."""
    model, input = cases.IN_PLACE.model(), cases.IN_PLACE.input()
    with Convolutions() as seen:
        METHODS[method][0](model, input, 1, "features.0", perturbations_per_eval=4)
    batch, sample = 2 * 2, 2 + 2 + (method == "ablation_cam")  # as in tests/methods/test_ablation.py
    assert sum(seen.rows) == batch + 2 * sample + 2 * variants


def test_noise_has_a_seed_of_its_own():
    model, input = cases.IN_PLACE.model(), cases.IN_PLACE.input()
    state = torch.get_rng_state()
    first, again, other = (ss_cam(model, input, 1, num_samples=2, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)
    close(ss_cam(model, input, 1, num_samples=2, std=0), score_cam(model, input, 1))
    close(is_cam(model, input, 1, num_samples=1), score_cam(model, input, 1))


WRONG = {
    "samples": (ss_cam, {"num_samples": 0}, "num_samples=0"),
    "parts": (is_cam, {"num_samples": 1.5}, "num_samples=1.5"),
    "std": (ss_cam, {"std": -1}, "std=-1 is not a standard deviation; expected a number >= 0"),
    "seed": (ss_cam, {"seed": "x"}, "seed='x'"),
    "chunk": (score_cam, {"perturbations_per_eval": 0}, "perturbations_per_eval=0"),
    "layout": (ablation_cam, {"layout": "rows"}, "layout='rows'"),
    "layer": (recipro_cam, {"saliency_layer": "feature"}, "did you mean 'features'?"),
}


@pytest.mark.parametrize("case", WRONG)
def test_errors_come_before_the_first_forward_pass(case):
    method, options, message = WRONG[case]
    model = cases.IN_PLACE.model()
    model.register_forward_pre_hook(lambda module, args: pytest.fail("it ran"))
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        method(model, cases.IN_PLACE.input(), 1, **options)
    assert "\n" not in str(error.value)


def test_a_table_of_features_has_nothing_to_mask():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    with pytest.raises(
        ValueError, match=r"input=a tensor of shape \(2, 4\) cannot be masked by .*; expected \(N, C, h, w\)"
    ):
        score_cam(model, draw(2, 4), 1, "0")
