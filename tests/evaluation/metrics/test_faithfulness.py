"""Curves and scores of models whose answer is known, and of others by the papers' formulas in loops."""

import math
from functools import partial

import pytest
import torch
from torch import nn

from saliency.evaluation.metrics.faithfulness import (
    average_drop,
    curve_area,
    deletion,
    increase_in_confidence,
    insertion,
    road,
    road_curves,
)
from saliency.evaluation.metrics.imputation import linear_imputation
from saliency.evaluation.metrics.perturbed import class_softmax, make_baseline
from saliency.evaluation.metrics.sensitivity import sensitivity_n

SIZE = (4, 6)
PIXELS = 24


def identity(output):
    return output


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def linear_model(channels=3, classes=5):
    layer = nn.Linear(channels * PIXELS, classes)
    layer.weight.data, layer.bias.data = draw(*layer.weight.shape, seed=1), draw(classes, seed=2)
    return nn.Sequential(nn.Flatten(), layer)


class Network(nn.Module):
    """Small, not linear, with what a call could change: dropout, batch norm, random numbers, an in-place start."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReLU(inplace=True), nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.GELU(), nn.Dropout(0.5)
        )
        self.head = nn.Linear(4, 5)
        for n, parameter in enumerate(self.parameters()):
            parameter.data = draw(*parameter.shape, seed=n)

    def forward(self, input):
        torch.rand(3)
        return self.head(self.layers(input).mean((2, 3)))


def cases(samples=3):
    """Input, target and maps without equal values."""
    return draw(samples, 3, *SIZE, seed=3), torch.arange(samples) % 5, draw(samples, 1, *SIZE, seed=4)


METRICS = {
    "insertion": partial(insertion, steps=5, baseline="mean"),
    "deletion": partial(deletion, steps=5),
    "road": road,
    "average_drop": average_drop,
    "increase_in_confidence": increase_in_confidence,
    "sensitivity_n": partial(sensitivity_n, n=5, samples=7),
}
every_metric = pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)


def pixels_in_order(saliency):
    """The (y, x) of one map from the most salient on; no two are equal."""
    pixels = [(y, x) for y in range(SIZE[0]) for x in range(SIZE[1])]
    return sorted(pixels, key=lambda pixel: -saliency[0, pixel[0], pixel[1]])


@pytest.mark.parametrize("insert", [True, False])
def test_curve_pixel_by_pixel(insert):
    model, (input, target, saliency) = linear_model(), cases()
    hidden = draw(3, 3, *SIZE, seed=5)
    curve = (insertion if insert else deletion)(model, input, target, saliency, PIXELS, hidden)
    assert curve.shape == (3, PIXELS + 1)
    for n in range(3):
        first, last = (hidden[n], input[n]) if insert else (input[n], hidden[n])
        picture = first.clone()
        for t, pixel in enumerate([None, *pixels_in_order(saliency[n])]):
            if pixel:
                picture[:, pixel[0], pixel[1]] = last[:, pixel[0], pixel[1]]
            scores = [math.exp(score) for score in model(picture[None])[0].tolist()]
            assert curve[n, t].item() == pytest.approx(scores[target[n]] / sum(scores), abs=1e-6)


@pytest.mark.parametrize("place", [0, 9, 23])
def test_a_model_that_reads_one_pixel(place):
    """The curve steps where that pixel's turn comes, and the area is the share of pixels behind the step."""
    input = torch.ones(1, 1, *SIZE)
    saliency = -torch.arange(24.0).view(1, 1, *SIZE)
    options = {"steps": PIXELS, "baseline": "zero", "activation": identity}
    inserted = insertion(nn.Flatten(), input, place, saliency, **options)
    deleted = deletion(nn.Flatten(), input, place, saliency, **options)
    assert inserted.tolist() == [[0.0] * (place + 1) + [1.0] * (PIXELS - place)]
    assert torch.equal(deleted, 1 - inserted)
    assert curve_area(inserted).item() == pytest.approx(1 - (place + 0.5) / PIXELS)


def test_equals_go_in_an_order_that_a_seed_draws():
    """Over many seeds every pixel of a constant map has every turn."""
    image, options = torch.ones(2, 1, *SIZE), {"activation": identity}
    turns = []
    for seed in range(200):
        curves = deletion(nn.Flatten(), image, 2, torch.zeros_like(image), PIXELS, seed=seed, **options)
        assert torch.equal(curves[0], curves[1])  # a case does not depend on its place in the batch
        turns.append(int(curves[0].sum()) - 1)
    assert sorted(set(turns)) == list(range(PIXELS))
    assert sum(turns) / 200 == pytest.approx((PIXELS - 1) / 2, abs=2)  # 4 standard errors


def test_steps_take_equal_numbers_of_pixels_up_to_one():
    class Count(nn.Module):
        def forward(self, input):
            return input.sum((1, 2, 3))[:, None]

    curve = deletion(Count(), torch.ones(1, 1, *SIZE), 0, cases(1)[2], 7, activation=identity)
    assert (24 - curve).tolist() == [[round(24 * t / 7) for t in range(8)]]
    curve = deletion(Count(), torch.ones(1, 1, *SIZE), 0, cases(1)[2], 50, activation=identity)
    assert (24 - curve).tolist() == [[math.floor(24 * t / 50 + 0.5) for t in range(51)]]


def test_area_is_the_trapezoidal_rule():
    curve = draw(3, 9)
    expected = [sum((row[t] + row[t + 1]) / 2 / 8 for t in range(8)) for row in curve.tolist()]
    assert curve_area(curve).tolist() == pytest.approx(expected)
    assert curve_area(torch.ones(2, 5)).tolist() == [1, 1]
    with pytest.raises(ValueError, match=r"^curve=\(4,\)"):
        curve_area(torch.ones(4))
    with pytest.raises(ValueError, match=r"^curve=\(4, 1\)"):
        curve_area(torch.ones(4, 1))


def test_sigmoid_for_labels_that_do_not_exclude_each_other():
    model, (input, target, saliency) = linear_model(), cases()
    curve = deletion(model, input, target, saliency, 2, activation=torch.sigmoid)
    assert curve[:, 0].tolist() == pytest.approx([model(input).sigmoid()[n, n].item() for n in range(3)])


def test_baselines():
    input = draw(2, 3, 30, 40)
    assert torch.equal(make_baseline(input, "zero"), torch.zeros(2, 3, 30, 40))
    mean = make_baseline(input, "mean")
    assert mean[1, 2, 3, 4].item() == pytest.approx(input[1, 2].mean().item())
    assert torch.equal(
        make_baseline(input, torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1))[:, 1], torch.full((2, 30, 40), 2)
    )
    for wrong in (torch.zeros(5), "white", None, 3):
        with pytest.raises(ValueError, match=r"^baseline=.*; expected .*\.$"):
            make_baseline(input, wrong)


@pytest.mark.parametrize(
    ("side", "radius", "sigma"), [(224, 5, 5.0), (128, 3, 20 / 7), (448, 10, 10.0), (8, 1, 5 / 28)]
)
def test_blur_is_a_gaussian_folded_into_its_window(side, radius, sigma):
    input = torch.zeros(1, 1, side, side + 3)
    input[0, 0, side // 2, side // 2] = 1
    blurred = make_baseline(input, "blur")[0, 0]
    width = 2 * radius + 1
    tail = max(1, int(4 * sigma + 0.5))
    kernel = [0.0] * width
    for offset in range(-tail, tail + 1):
        kernel[(offset + radius) % width] += math.exp(-(offset**2) / (2 * sigma**2))
    for i in range(-radius - 1, radius + 2):
        inside = abs(i) <= radius
        expected = kernel[i + radius] * kernel[radius] / sum(kernel) ** 2 if inside else 0
        assert blurred[side // 2 + i, side // 2].item() == pytest.approx(expected, abs=1e-6)
        assert blurred[side // 2, side // 2 + i].item() == pytest.approx(expected, abs=1e-6)


def test_road_by_the_definition():
    model, (input, target, saliency) = linear_model(), cases()
    most, least = road_curves(model, input, target, saliency, [25, 75], noise=0)
    for n in range(3):
        order = pixels_in_order(saliency[n])
        for p, count in enumerate((6, 18)):
            for curve, gone in ((most, order[:count]), (least, order[PIXELS - count :])):
                removed = torch.zeros(1, 1, *SIZE, dtype=torch.bool)
                for y, x in gone:
                    removed[0, 0, y, x] = True
                output = model(linear_imputation(input[n : n + 1], removed)).softmax(1)[0]
                assert curve[n, p].item() == pytest.approx(output[target[n]].item(), abs=1e-6)
    combined = road(model, input, target, saliency, [25, 75], noise=0)
    assert combined.tolist() == pytest.approx(((least - most).mean(1) / 2).tolist())


def test_road_of_one_bright_pixel():
    """Without it the imputation finds nothing of it; without the others it is all there."""
    input = torch.zeros(1, 1, *SIZE)
    input[0, 0, 2, 3] = 1
    assert road(nn.Flatten(), input, 15, input, activation=identity, noise=0).item() == pytest.approx(0.5)
    assert road(nn.Flatten(), input, 15, -input, activation=identity, noise=0).item() == pytest.approx(-0.5)


def test_road_noise_is_that_of_the_seed_and_on_removed_pixels_only():
    seen = []  # not on the model, where it would be put back

    class Keep(nn.Module):
        def forward(self, input):
            seen.append(input.clone())
            return input.flatten(1)

    model, input, saliency = Keep(), torch.zeros(2, 3, 40, 50), draw(2, 1, 40, 50)
    pictures = []
    for seed in (0, 0, 1):
        road_curves(model, input, 0, saliency, [50], noise=0.1, seed=seed, activation=identity)
        pictures.append(seen[-1])
    assert torch.equal(pictures[0], pictures[1])
    assert not torch.equal(pictures[0], pictures[2])
    removed = pictures[0] != 0
    assert removed.flatten(1).sum(1).tolist() == [3 * 1000] * 4
    assert torch.equal(removed[0], ~removed[1])  # most and least relevant half of the same case
    assert pictures[0][removed].std().item() == pytest.approx(0.1, rel=0.05)


def test_drop_and_increase_by_the_formula():
    model, (input, target, saliency) = Network().eval(), cases(20)
    drop = average_drop(model, input, target, saliency)
    increase = increase_in_confidence(model, input, target, saliency)
    for n in range(20):
        map = saliency[n : n + 1]
        shown = input[n : n + 1] * (map - map.min()) / (map.max() - map.min())
        before, after = (model(image.clone()).softmax(1)[0, target[n]].item() for image in (input[n : n + 1], shown))
        assert drop[n].item() == pytest.approx(max(0, before - after) / before, abs=1e-5)
        assert increase[n].item() == (after > before)
    assert increase.dtype == torch.bool
    assert 0 < increase.sum() < 20
    assert ((drop > 0) == ~increase).all()


def test_drop_known_answers():
    input = torch.ones(4, 1, 1, 3)
    saliency = torch.tensor([[0.0, 1.0, 2.0], [5.0, 1.0, 0.0], [3.0, 3.0, 3.0], [-2.0, -1.0, 0.0]]).view(4, 1, 1, 3)
    assert average_drop(nn.Flatten(), input, 1, saliency, identity).tolist() == pytest.approx([0.5, 0.8, 1, 0.5])
    # What was 0 has nothing to lose.
    assert average_drop(nn.Flatten(), 0 * input, 1, saliency, identity).tolist() == [0] * 4
    assert not increase_in_confidence(nn.Flatten(), 0 * input, 1, saliency, identity).any()


def test_sensitivity_of_a_linear_model_is_one():
    model, (input, target, _) = linear_model().double(), cases(5)
    input = input.double()
    weight = model[1].weight[target].view_as(input)
    saliency = (input * weight).sum(1, keepdim=True)
    for n in (1, 0.25, 23):
        assert sensitivity_n(model, input, target, saliency, n).tolist() == pytest.approx([1] * 5, abs=1e-9)
        assert sensitivity_n(model, input, target, 3 - saliency, n).tolist() == pytest.approx([-1] * 5, abs=1e-9)
    hidden = draw(5, 3, *SIZE, seed=8).double()
    saliency = ((input - hidden) * weight).sum(1, keepdim=True)
    score = sensitivity_n(model, input, target, saliency, 7, baseline=hidden)
    assert score.tolist() == pytest.approx([1] * 5, abs=1e-9)


def test_sensitivity_by_the_definition():
    seen = []  # not on the model, where it would be put back

    class Keep(nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, input):
            seen.append(input.clone())
            return self.network(input)

    model, (input, target, saliency) = Keep(Network().eval().double()), cases()
    input, saliency = input.double(), saliency.double()
    score = sensitivity_n(model, input, target, saliency, 5, samples=30, batch_size=13)
    assert max(map(len, seen)) == 13
    pictures = torch.cat(seen).view(3, 31, 3, *SIZE)
    assert torch.equal(pictures[:, 0], input)
    hidden = (pictures != pictures[:, :1]).all(2)[:, 1:]
    assert (hidden.sum((2, 3)) == 5).all()
    assert torch.equal(hidden[0], hidden[2])
    for n in range(3):
        sums = [sum(saliency[n, 0][mask].tolist()) for mask in hidden[n]]
        outputs = [model.network(picture[None].clone())[0, target[n]].item() for picture in pictures[n]]
        loss = [outputs[0] - output for output in outputs[1:]]
        expected = torch.corrcoef(torch.tensor([sums, loss], dtype=torch.float64))[0, 1].item()
        assert score[n].item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6])
def test_sensitivity_of_what_is_constant_is_zero(value):
    model, (input, target, saliency) = linear_model(), cases()
    assert sensitivity_n(model, input, target, torch.full_like(saliency, value)).tolist() == [0] * 3
    model[1].weight.data.zero_()
    assert sensitivity_n(model, input, target, saliency).tolist() == [0] * 3


@pytest.mark.parametrize("loss", [0.1, 0.7, 1 / 3])
def test_sensitivity_of_a_constant_loss_is_zero(loss):
    class Whole(nn.Module):
        def forward(self, input):
            return loss * (input != 0).flatten(1).all(1, keepdim=True).float()

    input, _, saliency = cases()
    assert sensitivity_n(Whole(), input, 0, saliency).tolist() == [0] * 3


@every_metric
def test_a_case_does_not_depend_on_the_others_nor_on_the_batch_size(metric):
    model, (input, target, saliency) = Network().double().eval(), cases(4)
    input = input.double()
    together = metric(model, input, target, saliency).double()
    for n in range(4):
        alone = metric(model, input[n : n + 1], target[n : n + 1], saliency[n : n + 1], batch_size=3)
        assert torch.allclose(alone[0].double(), together[n], atol=1e-6)
    assert torch.allclose(metric(model, input, target, saliency, batch_size=1).double(), together, atol=1e-6)


@every_metric
def test_batches_hold_no_more_images_than_asked(metric):
    sizes = []
    model, (input, target, saliency) = linear_model(), cases(4)
    with model.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0]))):
        metric(model, input, target, saliency, batch_size=3)
    assert max(sizes) == 3


@every_metric
def test_nothing_is_changed(metric):
    model, (input, target, saliency) = Network(), cases()
    input.requires_grad_()
    saliency.requires_grad_()
    model.layers[2].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    copies = input.detach().clone(), target.clone(), saliency.detach().clone()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    result = metric(model, input, target, saliency)
    assert not result.requires_grad
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(torch.equal(*pair) for pair in zip((input, target, saliency), copies, strict=True))
    assert input.grad is None
    assert torch.equal(result, metric(model.eval(), input, target, saliency))


@every_metric
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, partial(torch.autocast, "cpu", torch.bfloat16)])
def test_within_the_callers_modes(metric, mode):
    model, (input, target, saliency) = Network(), cases()
    expected = metric(model, input, target, saliency)
    with mode():
        result = metric(model, input + 0, target + 0, saliency + 0)
        tolerance = 0.1 if torch.is_autocast_enabled("cpu") else 0
    assert result.dtype == expected.dtype
    if result.is_floating_point():
        assert torch.allclose(result, expected, atol=tolerance, rtol=0)


@every_metric
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_precisions(metric, dtype):
    model, (input, target, saliency) = Network(), cases()
    expected = metric(model, input, target, saliency)
    result = metric(model.to(dtype), input.to(dtype), target, saliency.to(dtype))
    assert result.shape == expected.shape
    if result.is_floating_point():
        assert result.dtype == torch.promote_types(dtype, torch.float32)
        # Correlations of small differences lose more than probabilities do.
        tolerance = 1e-5 if dtype == torch.float64 else 0.3
        assert torch.allclose(result.double(), expected.double(), atol=tolerance, rtol=0)


def test_targets_and_outputs_as_in_the_methods():
    class Mapping(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = linear_model()

        def forward(self, input):
            return {"logits": self.model(input)}

    input, _, saliency = cases()
    expected = deletion(linear_model(), input, torch.tensor([2, 2, 2]), saliency, 3)
    assert torch.equal(deletion(Mapping(), input, 2, saliency, 3), expected)
    assert torch.equal(deletion(linear_model(), input, [2, 2, 2], saliency, 3), expected)


def test_a_mask_is_a_map():
    model, (input, target, saliency) = linear_model(), cases()
    mask = saliency > 0
    assert torch.equal(average_drop(model, input, target, mask), average_drop(model, input, target, mask.float()))


@every_metric
def test_what_cannot_be_scored_is_refused(metric):
    model, (input, target, saliency) = linear_model(), cases()
    for value in (torch.nan, torch.inf, -torch.inf):
        broken = saliency.clone()
        broken[1, 0, 2, 3] = value
        with pytest.raises(ValueError, match=r"^saliency=NaN or infinity in cases \[1\] .*; expected .*\.$"):
            metric(model, input, target, broken)
    for wrong in (saliency[:2], saliency[..., 1:], saliency[:, 0], saliency.expand(-1, 3, -1, -1)):
        with pytest.raises(ValueError, match=r"^saliency=\(.*; expected .*\.$"):
            metric(model, input, target, wrong)
    for wrong in (input[0], input.long(), input[:0]):
        with pytest.raises(ValueError, match=r"^input=.*; expected .*\.$"):
            metric(model, wrong, target, saliency)
    for wrong in (5, torch.tensor([0, 1]), torch.zeros(3, 2, dtype=torch.long)):
        with pytest.raises(ValueError, match=r"^target="):
            metric(model, input, wrong, saliency)
    with pytest.raises(ValueError, match=r"^batch_size=0"):
        metric(model, input, target, saliency, batch_size=0)
    model[1].weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"^model=Sequential gave NaN or infinity for cases \[0, 1, 2\]"):
        metric(nn.Sequential(model, nn.Softmax(1)), input, target, saliency)


@pytest.mark.parametrize(
    ("metric", "options"),
    [
        (insertion, {"steps": 0}),
        (deletion, {"steps": 2.5}),
        (deletion, {"activation": "softmax"}),
        (deletion, {"baseline": "black"}),
        (road, {"percentages": []}),
        (road, {"percentages": [0, 50]}),
        (road, {"percentages": [100]}),
        (road, {"percentages": 50}),
        (road, {"noise": -1}),
        (road, {"noise": math.nan}),
        (road, {"seed": -1}),
        (sensitivity_n, {"n": 0}),
        (sensitivity_n, {"n": 24}),
        (sensitivity_n, {"n": 1.0}),
        (sensitivity_n, {"n": 0.001}),
        (sensitivity_n, {"n": True}),
        (sensitivity_n, {"samples": 0}),
        (sensitivity_n, {"seed": 0.5}),
    ],
)
def test_options_are_checked(metric, options):
    def fail(*args):
        raise AssertionError("ran the model")

    model, (input, target, saliency) = linear_model(), cases()
    (name,) = options
    message = rf"^{name}=.*; expected .*\.$"
    with model.register_forward_pre_hook(fail), pytest.raises(ValueError, match=message):
        metric(model, input, target, saliency, **options)


def test_a_model_that_returns_no_tensor():
    class Nothing(nn.Module):
        def forward(self, input):
            return []

    input, target, saliency = cases()
    with pytest.raises(ValueError, match=r"^model=Nothing returned a list"):
        deletion(Nothing(), input, target, saliency)


def test_default_activation_is_over_the_classes():
    assert torch.equal(class_softmax(draw(2, 5)), draw(2, 5).softmax(1))
