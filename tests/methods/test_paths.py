"""Path methods are their papers' formulas, written out in loops over samples, steps and targets with autograd."""

import math
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import saliency
from saliency.engine import paths
from tests import cases
from tests.cases import NOTICES

QUADRATURES = ["gausslegendre", "riemann_left", "riemann_middle", "riemann_right", "riemann_trapezoid"]
LAYERS = ["", "1", "3"]
Score = Callable[[Tensor], Tensor]  # of one sample's output (5,)


def network() -> nn.Sequential:
    """A chain that can be cut anywhere, and that no path goes through in a straight line."""
    torch.manual_seed(0)
    return (
        nn.Sequential(
            nn.Conv2d(2, 3, 3, padding=1),
            nn.Softplus(),
            nn.Conv2d(3, 4, 3, stride=2),
            nn.ELU(inplace=True),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, 5),
            nn.Tanh(),
        )
        .double()
        .eval()
    )


def image(seed: int = 1, samples: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(samples, 2, 6, 7, dtype=torch.float64, generator=generator)


def front(layer: str) -> Callable[[Tensor], Tensor]:
    model = network()[: int(layer) + 1] if layer else nn.Identity()
    return lambda x: model(x.clone()).detach()


def gradient_at(layer: str, y: Tensor, score: Score) -> Tensor:
    """The gradient of one sample's score at a layer's activation (1, ...)."""
    tail = network()[int(layer) + 1 if layer else 0 :]
    y = y.detach().requires_grad_()
    return torch.autograd.grad(score(tail(y.clone())[0]), y)[0]


def score_at(layer: str, y: Tensor, score: Score) -> float:
    return float(score(network()[int(layer) + 1 if layer else 0 :](y.clone())[0]).detach())


def positions_and_weights(n: int, method: str) -> list[tuple[float, float]]:
    """The quadratures by their definitions; of Gauss and Legendre, NumPy's."""
    if method == "gausslegendre":
        nodes, weights = np.polynomial.legendre.leggauss(n)
        return [((node + 1) / 2, weight / 2) for node, weight in zip(nodes, weights, strict=True)]
    if method == "riemann_trapezoid":
        return [(t / (n - 1), (0.5 if t in (0, n - 1) else 1) / (n - 1)) for t in range(n)]
    shift = {"riemann_left": 0, "riemann_middle": 0.5, "riemann_right": 1}[method]
    return [((t + shift) / n, 1 / n) for t in range(n)]


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(found, expected.detach(), rtol=tolerance, atol=tolerance * float(expected.abs().max()))


# --- the formulas, for one sample (1, ...) --------------------------------------------------------------------------


def integrated_gradients(layer: str, x: Tensor, start: Tensor, score: Score, steps: Any) -> Tensor:
    y, y0 = front(layer)(x), front(layer)(start)
    total = torch.zeros_like(y)
    for alpha, weight in steps:
        total += weight * gradient_at(layer, y0 + alpha * (y - y0), score)
    return (y - y0) * total


def internal_influence(layer: str, x: Tensor, start: Tensor, score: Score, steps: Any) -> Tensor:
    return sum(w * gradient_at(layer, front(layer)(start + a * (x - start)), score) for a, w in steps)


def conductance(layer: str, x: Tensor, start: Tensor, score: Score, steps: Any) -> Tensor:
    at = [front(layer)(start + alpha * (x - start)) for alpha, _ in steps]
    return sum(gradient_at(layer, y, score) * (after - y) for y, after in pairwise(at))


FORMULAS = {
    "integrated_gradients": integrated_gradients,
    "internal_influence": internal_influence,
    "conductance": conductance,
}


def expected_of(method: str, layer: str, x: Tensor, start: Tensor, scores: Sequence[Score], steps: Any) -> Tensor:
    """Samples one by one, each with its score."""
    of = FORMULAS[method]
    return torch.cat([of(layer, x[n : n + 1], start[n : n + 1], scores[n], steps) for n in range(len(x))])


def steps_of(method: str, n_steps: int, quadrature: str) -> list[tuple[float, float]]:
    """Conductance has one step between each two of its points."""
    return positions_and_weights(n_steps + (method == "conductance"), quadrature)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("quadrature", QUADRATURES)
@pytest.mark.parametrize("method", FORMULAS)
def test_methods_on_a_line_are_their_formulas(method, quadrature, layer):
    start = image(2) / 3
    steps = steps_of(method, 4, quadrature)
    expected = expected_of(method, layer, image(), start, [lambda y: y[1], lambda y: y[4]], steps)
    options = {"n_steps": 4, "method": quadrature}
    function = getattr(saliency, method)
    close(function(network(), image(), [1, 4], layer, start, **options, reduction=None), expected)
    close(function(network(), image(), [1, 4], layer, start, **options), expected.sum(1, keepdim=True))


@pytest.mark.parametrize("n", [2, 3, 10, 50])
@pytest.mark.parametrize("method", QUADRATURES)
def test_quadratures_have_the_positions_and_weights_of_their_definitions(method, n):
    at, weights = paths.quadrature(n, method)
    expected = torch.tensor(positions_and_weights(n, method), dtype=torch.float64)
    torch.testing.assert_close(torch.stack([at, weights], 1), expected, rtol=1e-12, atol=1e-14)
    assert float(weights.sum()) == pytest.approx(1, abs=1e-13)


@pytest.mark.parametrize("n", [1, 2, 5, 12])
def test_gauss_legendre_is_exact_for_polynomials_of_degree_2n_minus_1(n):
    at, weights = paths.quadrature(n, "gausslegendre")
    for degree in range(2 * n):
        assert float((weights * at**degree).sum()) == pytest.approx(1 / (degree + 1), rel=1e-12)


def draws(path: paths.Path, x: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Points, starts and ends of all steps of a sample (1, ...)."""
    count = len(path.weights)
    rows = path.begin([x], None)(torch.zeros(count, dtype=torch.long), torch.arange(count))
    return [tuple(of[0][t : t + 1] if of else None for of in rows) for t in range(count)]


@pytest.mark.parametrize("layer", LAYERS)
def test_gradient_shap_is_the_mean_of_gradients_times_what_moved(layer):
    baselines, count = image(3, 4), 6
    rows = []
    for n in range(2):
        total = 0
        for point, start, end in draws(saliency.between([baselines], count, 0.3, seed=5), image()[n : n + 1]):
            moved = front(layer)(end) - front(layer)(start)
            total = total + gradient_at(layer, front(layer)(point), lambda y: y[2]) * moved / count
        rows.append(total)
    options = {"n_samples": count, "stdevs": 0.3, "seed": 5, "reduction": None}
    close(saliency.gradient_shap(network(), image(), 2, layer, baselines, **options), torch.cat(rows))


def test_gradient_shap_draws_baselines_noise_and_positions():
    """Of many draws: every baseline about as often, positions uniform on the way, noise of the deviation asked for."""
    baselines, x, count = image(3, 4), image()[:1], 400
    found = draws(saliency.between([baselines], count, 0.3), x)
    chosen = [next(i for i, b in enumerate(baselines) if torch.equal(b, start[0])) for _, start, _ in found]
    assert {chosen.count(i) > count / 8 for i in range(4)} == {True}
    noise = torch.cat([end - x for *_, end in found])
    assert float(noise.std()) == pytest.approx(0.3, rel=0.02)
    assert float(noise.mean()) == pytest.approx(0, abs=0.01)
    alphas = [((point - start) / (end - start)).flatten() for point, start, end in found]
    for alpha in alphas:
        torch.testing.assert_close(alpha, alpha[:1].expand_as(alpha), rtol=1e-6, atol=1e-8)
    values = torch.stack([alpha[0] for alpha in alphas]).sort().values
    assert float((values - torch.linspace(0, 1, count, dtype=torch.float64)).abs().max()) < 1.63 / math.sqrt(count)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("power", ["mean", "squared", "variance"])
def test_smooth_gradient_is_the_mean_square_or_variance_of_noisy_gradients(power, layer):
    rows = []
    for n in range(2):
        points = [point for point, *_ in draws(saliency.noise(6, 0.3, seed=7), image()[n : n + 1])]
        gradients = [gradient_at(layer, front(layer)(point), lambda y: y[2]) for point in points]
        mean, square = sum(gradients) / 6, sum(g * g for g in gradients) / 6
        rows.append({"mean": mean, "squared": square, "variance": square - mean * mean}[power])
    expected = torch.cat(rows)
    options = {"n_samples": 6, "stdevs": 0.3, "seed": 7, "power": power}
    found = saliency.smooth_gradient(network(), image(), 2, layer, **options, reduction=None)
    close(found, expected, 1e-9)
    found = saliency.smooth_gradient(network(), image(), 2, layer, **options)
    close(found, expected.abs().amax(1, keepdim=True), 1e-9)


def test_noise_has_the_standard_deviation_asked_for():
    noise = torch.cat([point - image()[:1] for point, *_ in draws(saliency.noise(300, 0.25), image()[:1])])
    assert float(noise.std()) == pytest.approx(0.25, rel=0.02)
    assert float(noise.mean()) == pytest.approx(0, abs=0.01)
    other = torch.cat([point - image()[:1] for point, *_ in draws(saliency.noise(300, 0.25, seed=1), image()[:1])])
    assert not torch.isclose(noise, other).any()


# --- targets --------------------------------------------------------------------------------------------------------

_WEIGHTS = torch.linspace(-1, 1, 10, dtype=torch.float64).view(2, 5)
# name -> the target of two samples, and the scores of each by target: [k][n]
TARGETS: dict[str, tuple[Any, list[list[Score]]]] = {
    "int": (3, [[lambda y: y[3]] * 2]),
    "one per sample": (torch.tensor([3, 0]), [[lambda y: y[3], lambda y: y[0]]]),
    "(N, K)": (torch.tensor([[3, 0, 1], [2, 4, 1]]), [[lambda y, a=a: y[a], lambda y, b=b: y[b]] for a, b in
                                                     ((3, 2), (0, 4), (1, 1))]),
    "gradient": (_WEIGHTS, [[lambda y, n=n: (y * _WEIGHTS[n]).sum() for n in range(2)]]),
    "tuple": ((4,), [[lambda y: y[4]] * 2]),
    "tuples": ([(4,), (1,)], [[lambda y: y[4], lambda y: y[1]]]),
    "function": (lambda y: y[:, 1] - y[:, 2] ** 2, [[lambda y: y[1] - y[2] ** 2] * 2]),
}  # fmt: skip


@pytest.mark.parametrize("size", [None, 1, 5])
@pytest.mark.parametrize("layer", ["", "1"])
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("method", FORMULAS)
def test_targets_of_every_kind_in_chunks_of_any_size(method, target, layer, size):
    given, columns = TARGETS[target]
    start = torch.zeros_like(image())
    steps = steps_of(method, 3, "gausslegendre")
    expected = [expected_of(method, layer, image(), start, scores, steps) for scores in columns]
    expected = expected[0] if len(expected) == 1 else torch.stack(expected, 1)
    options = {"n_steps": 3, "internal_batch_size": size}
    function = getattr(saliency, method)
    close(function(network(), image(), given, layer, **options, reduction=None), expected)
    maps = function(network(), image(), given, layer, **options)
    close(maps, expected.sum(2) if target == "(N, K)" else expected.sum(1, keepdim=True))


@pytest.mark.parametrize("size", [None, 1, 5])
@pytest.mark.parametrize("method", ["gradient_shap", "smooth_gradient"])
def test_targets_of_random_paths_are_explained_as_if_alone(method, size):
    function = getattr(saliency, method)
    target = torch.tensor([[3, 0, 1], [2, 4, 1]])
    for layer in ("", "1"):
        options = {"n_samples": 3, "stdevs": 0.2, "internal_batch_size": size, "reduction": None}
        found = function(network(), image(), target, layer, **options)
        alone = [function(network(), image(), target[:, k], layer, **options) for k in range(3)]
        close(found, torch.stack(alone, 1))


# --- inputs and baselines -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", ["", "1"])
@pytest.mark.parametrize("method", FORMULAS)
def test_baselines_may_be_none_a_number_one_for_all_or_one_for_each(method, layer):
    one, each = image(4)[:1], image(4)
    function = getattr(saliency, method)
    steps = steps_of(method, 3, "gausslegendre")
    for baselines, start in (
        (None, torch.zeros_like(each)),
        (0, torch.zeros_like(each)),
        (0.3, torch.full_like(each, 0.3)),  # in the input's precision
        (np.float32(0.5), torch.full_like(each, 0.5)),
        (one, one.expand_as(each)),
        (one.float(), one.float().double().expand_as(each)),
        (each, each),
        ((each,), each),
        ([0.5], torch.full_like(each, 0.5)),
    ):
        expected = expected_of(method, layer, image(), start, [lambda y: y[1]] * 2, steps)
        found = function(network(), image(), 1, layer, baselines, n_steps=3, reduction=None)
        close(found, expected)


class Product(nn.Module):
    """Two inputs, and an index that selects a row."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, padding=1)
        self.linear = nn.Linear(4, 3)
        self.table = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 4)

    def forward(self, x: Tensor, y: Tensor, i: Tensor) -> Tensor:
        mixed = self.conv(x).tanh().mean((2, 3)) * self.linear(y).exp()
        return self.head(mixed + self.table(i[:, 0])).tanh()


def product() -> tuple[Product, tuple[Tensor, Tensor, Tensor]]:
    torch.manual_seed(0)
    y = torch.randn(2, 4, dtype=torch.float64)
    return Product().double().eval(), (image(), y, torch.tensor([[1], [3]]))


@pytest.mark.parametrize(
    ("baselines", "starts"),
    [
        (None, (0, 0)),
        (0.5, (0.5, 0.5)),
        ((0.5, None, None), (0.5, 0)),
        ((image(4), 1, 0), (image(4), 1)),
    ],
)
def test_all_inputs_but_integers_move_together(baselines, starts):
    model, inputs = product()
    x, y, i = inputs
    x0, y0 = (torch.zeros_like(z) + start for z, start in zip((x, y), starts, strict=True))
    attributions = [torch.zeros_like(x), torch.zeros_like(y)]
    for alpha, weight in positions_and_weights(3, "gausslegendre"):
        a, b = ((z0 + alpha * (z - z0)).requires_grad_() for z, z0 in ((x, x0), (y, y0)))
        gradients = torch.autograd.grad(model(a, b, i)[:, 2].sum(), (a, b))
        for total, gradient, z, z0 in zip(attributions, gradients, (x, y), (x0, y0), strict=True):
            total += weight * gradient * (z - z0)
    for size in (None, 1, 4):
        options = {"n_steps": 3, "internal_batch_size": size, "reduction": None}
        found = saliency.integrated_gradients(model, inputs, 2, "", baselines, **options)
        assert isinstance(found, tuple)
        for ours, expected in zip(found, attributions, strict=True):
            close(ours, expected)
    maps = saliency.integrated_gradients(model, inputs, 2, "", baselines, n_steps=3)
    assert [m.shape for m in maps] == [(2, 1, 6, 7), (2, 1, 1, 1)]


def test_distributions_of_gradient_shap_are_tensors_tuples_or_functions():
    expected = saliency.gradient_shap(network(), image(), 2, "", image(3, 4), reduction=None)
    for baselines in ((image(3, 4),), [image(3, 4)], lambda x: image(3, 4), lambda x: (image(3, 4),)):
        close(saliency.gradient_shap(network(), image(), 2, "", baselines, reduction=None), expected)
    zeros = saliency.gradient_shap(network(), image(), 2, "", torch.zeros(1, 2, 6, 7), reduction=None)
    close(saliency.gradient_shap(network(), image(), 2, reduction=None), zeros)
    model, inputs = product()
    seen: list[Any] = []

    def one_for_each(*moving: Tensor) -> list[Tensor]:
        seen.append([x.shape for x in moving])
        return [x[:1] * 0.5 for x in moving]

    found = saliency.gradient_shap(model, inputs, 2, "", one_for_each, stdevs=(0.1, 0.2), reduction=None)
    assert seen == [[(2, 2, 6, 7), (2, 4)]]
    same = saliency.gradient_shap(
        model, inputs, 2, "", (image()[:1] * 0.5, inputs[1][:1] * 0.5), stdevs=(0.1, 0.2), reduction=None
    )
    for a, b in zip(found, same, strict=True):
        close(a, b)


def test_each_of_several_inputs_has_noise_of_its_own_deviation():
    model, inputs = product()
    path = saliency.noise(200, (0.1, 0.4))
    walk = path.begin(inputs[:2], None)
    points = walk(torch.zeros(200, dtype=torch.long), torch.arange(200)).points
    assert float((points[0] - inputs[0][:1]).std()) == pytest.approx(0.1, rel=0.02)
    assert float((points[1] - inputs[1][:1]).std()) == pytest.approx(0.4, rel=0.05)
    found = saliency.smooth_gradient(model, inputs, 2, n_samples=3, stdevs=(0.1, 0), reduction=None)
    noise = [point - inputs[0][:1] for point, *_ in draws(saliency.noise(3, 0.1), inputs[0][:1])]
    total = [0, 0]
    for t in range(3):
        points = [(inputs[0] + noise[t]).requires_grad_(), inputs[1].clone().requires_grad_()]
        gradients = torch.autograd.grad(model(*points, inputs[2])[:, 2].sum(), points)
        total = [a + g / 3 for a, g in zip(total, gradients, strict=True)]
    for ours, expected in zip(found, total, strict=True):
        close(ours, expected)


@pytest.mark.parametrize("size", [None, 1, 2, 7])
@pytest.mark.parametrize("layer", ["", "1"])
@pytest.mark.parametrize("method", ["gradient_shap", "smooth_gradient"])
def test_draws_belong_to_the_step_whatever_the_chunks_and_the_batch(method, layer, size):
    function = getattr(saliency, method)
    options = {"n_samples": 5, "stdevs": 0.3, "reduction": None}
    if method == "gradient_shap":
        options["baselines"] = image(3, 4)
    expected = function(network(), image(1, 3), 2, layer, **options)
    close(function(network(), image(1, 3), 2, layer, **options, internal_batch_size=size), expected)
    for n in range(3):
        alone = function(network(), image(1, 3)[n : n + 1], 2, layer, **options, internal_batch_size=size)
        close(alone, expected[n : n + 1])
    torch.manual_seed(123)
    assert torch.equal(function(network(), image(1, 3), 2, layer, **options), expected)
    assert not torch.allclose(function(network(), image(1, 3), 2, layer, **options, seed=1), expected)


# --- what belongs to the driver -------------------------------------------------------------------------------------


def change(layer: str, x: Tensor, start: Tensor, score: Score) -> Tensor:
    ends = [score_at("", z[n : n + 1], score) for z in (x, start) for n in range(len(x))]
    return torch.tensor(ends[: len(x)], dtype=torch.float64) - torch.tensor(ends[len(x) :], dtype=torch.float64)


@pytest.mark.parametrize("size", [None, 3])
@pytest.mark.parametrize("method", FORMULAS)
def test_the_delta_is_the_attributions_sum_less_the_change_of_the_score(method, size):
    start = image(4)
    function = getattr(saliency, method)
    options = {"n_steps": 3, "reduction": None, "internal_batch_size": size, "return_convergence_delta": True}
    for layer in LAYERS:
        found, delta = function(network(), image(), 1, layer, start, **options)
        expected = found.flatten(1).sum(1) - change(layer, image(), start, lambda y: y[1])
        assert delta.shape == (2,)
        torch.testing.assert_close(delta, expected, rtol=0, atol=1e-12)
        maps, same = function(network(), image(), 1, layer, start, **{**options, "reduction": saliency.max_channels})
        torch.testing.assert_close(same, delta, rtol=0, atol=1e-12)
        close(maps, found.abs().amax(1, keepdim=True))

    found, deltas = function(network(), image(), 1, ["1", "", "3"], start, **options)
    assert isinstance(found, list)
    assert isinstance(deltas, list)
    for layer, one, delta in zip(["1", "", "3"], found, deltas, strict=True):
        alone = function(network(), image(), 1, layer, start, **options)
        close(one, alone[0])
        torch.testing.assert_close(delta, alone[1], rtol=0, atol=1e-12)

    target = torch.tensor([[1, 0, 4], [2, 3, 1]])
    for layer in ("", "1"):
        found, deltas = function(network(), image(), target, layer, start, **options)
        assert deltas.shape == (2, 3)
        for k in range(3):
            alone = function(network(), image(), target[:, k], layer, start, **options)
            torch.testing.assert_close(deltas[:, k], alone[1], rtol=0, atol=1e-12)


def test_the_delta_of_several_inputs_is_that_of_their_sum():
    model, inputs = product()
    found, delta = saliency.integrated_gradients(
        model, inputs, 2, "", 0.5, n_steps=3, reduction=None, return_convergence_delta=True
    )
    with torch.no_grad():
        rise = model(*inputs)[:, 2] - model(*(torch.full_like(x, 0.5) for x in inputs[:2]), inputs[2])[:, 2]
    expected = sum(x.flatten(1).sum(1) for x in found) - rise
    torch.testing.assert_close(delta, expected, rtol=0, atol=1e-12)


def test_the_delta_of_gradient_shap_is_the_mean_over_its_draws():
    baselines = image(3, 4)
    path = saliency.between([baselines], 5, 0.2)
    options = {"n_samples": 5, "stdevs": 0.2, "reduction": None, "return_convergence_delta": True}
    for layer in ("", "1"):
        found, delta = saliency.gradient_shap(network(), image(), 2, layer, baselines, **options)
        for n in range(2):
            of = draws(path, image()[n : n + 1])
            rises = [float(change("", end, start, lambda y: y[2])) for _, start, end in of]
            assert float(delta[n]) == pytest.approx(float(found[n].sum()) - sum(rises) / 5, abs=1e-12)


@pytest.mark.parametrize("layer", LAYERS)
def test_without_multiplying_by_inputs_it_is_the_mean_gradient(layer):
    start = image(4)
    steps = positions_and_weights(3, "gausslegendre")
    y, y0 = front(layer)(image()), front(layer)(start)
    scores = [lambda y: y[1]] * 2
    expected = expected_of("integrated_gradients", layer, image(), start, scores, steps) / (y - y0)
    options = {"n_steps": 3, "multiply_by_inputs": False, "reduction": None}
    close(saliency.integrated_gradients(network(), image(), 1, layer, start, **options), expected, 1e-8)
    options = {"n_samples": 4, "stdevs": 0.2, "multiply_by_inputs": False, "reduction": None}
    found = saliency.gradient_shap(network(), image(), 1, layer, image(3, 4), **options)
    for n in range(2):
        points = [point for point, *_ in draws(saliency.between([image(3, 4)], 4, 0.2), image()[n : n + 1])]
        expected = sum(gradient_at(layer, front(layer)(point), scores[0]) for point in points) / 4
        close(found[n : n + 1], expected)
    plain = saliency.gradient_x_activation(network(), image(), 1, layer, multiply_by_inputs=False, reduction=None)
    close(plain, torch.cat([gradient_at(layer, y[n : n + 1], scores[0]) for n in range(2)]))


class Aside(nn.Module):
    """A layer that runs, but that the score does not depend on."""

    def __init__(self) -> None:
        super().__init__()
        self.aside = nn.Conv2d(2, 3, 3)
        self.main = network()

    def forward(self, x: Tensor) -> Tensor:
        self.aside(x)
        return self.main(x)


@pytest.mark.parametrize(
    "method", ["integrated_gradients", "internal_influence", "conductance", "gradient_shap", "smooth_gradient"]
)
def test_a_layer_that_the_score_does_not_depend_on_is_an_error_or_zeros(method):
    function = getattr(saliency, method)
    model = Aside().double().eval()
    with pytest.raises(ValueError, match=r"^saliency_layer='aside' is reached by no gradient"):
        function(model, image(), 1, "aside")
    for target, shape in ((1, (2, 3, 4, 5)), ([[1, 2], [0, 3]], (2, 2, 3, 4, 5))):
        found = function(model, image(), target, "aside", materialize_grads=True, reduction=None)
        assert torch.equal(found, torch.zeros(shape, dtype=torch.float64))
    both = function(model, image(), 1, ["aside", "main.1"], materialize_grads=True, reduction=None)
    assert torch.equal(both[0], torch.zeros(2, 3, 4, 5, dtype=torch.float64))
    close(both[1], function(model, image(), 1, "main.1", reduction=None))


# --- layers that run several times ----------------------------------------------------------------------------------


def twice_parts() -> tuple[nn.Module, Tensor, list[Callable[[Tensor], tuple[Tensor, Tensor]]]]:
    """The model, its input; for each call of its layer, the activation there and the score (N,) of class 2."""
    model, input = cases.TWICE.model(), cases.TWICE.input()

    def first(x: Tensor) -> tuple[Tensor, Tensor]:
        y = model.conv(model.stem(x).relu()).detach().requires_grad_()
        return y, model.classifier(model.conv(y.relu()).tanh().mean((2, 3)))[:, 2]

    def second(x: Tensor) -> tuple[Tensor, Tensor]:
        y = model.conv(model.conv(model.stem(x).relu()).relu()).detach().requires_grad_()
        return y, model.classifier(y.tanh().mean((2, 3)))[:, 2]

    return model, input, [first, second]


def test_a_call_of_a_layer_that_runs_twice_is_named_by_its_index():
    model, input, calls = twice_parts()
    influence, flow, smooth = ([0, 0] for _ in range(3))
    steps = positions_and_weights(3, "gausslegendre")
    noise = [point - input[:1] for point, *_ in draws(saliency.noise(3, 0.2), input[:1])]
    for k, of in enumerate(calls):
        for alpha, weight in steps:
            y, score = of(alpha * input)
            influence[k] = influence[k] + weight * torch.autograd.grad(score.sum(), y)[0]
        at = [of(alpha * input) for alpha, _ in steps]
        for (y, score), (after, _) in pairwise(at):
            flow[k] = flow[k] + torch.autograd.grad(score.sum(), y)[0] * (after - y).detach()
        for t in range(3):
            y, score = of(input + noise[t])
            smooth[k] = smooth[k] + torch.autograd.grad(score.sum(), y)[0] / 3
    for method, options, expected in (
        (saliency.internal_influence, {"n_steps": 3}, influence),
        (saliency.conductance, {"n_steps": 2}, flow),
        (saliency.smooth_gradient, {"n_samples": 3, "stdevs": 0.2}, smooth),
    ):
        for call, value in ((0, expected[0]), (1, expected[1]), (-1, expected[1]), ("all", sum(expected))):
            for size in (None, 4):
                options |= {"reduction": None, "internal_batch_size": size}
                close(method(model, input, 2, "conv", call=call, **options), value)
        close(method(model, input, 2, "conv", **options), expected[1])
    for method in (saliency.gradient_x_activation, saliency.activation):
        each = [method(model, input, 2, "conv", call=call, reduction=None) for call in (0, 1)]
        close(method(model, input, 2, "conv", call="all", reduction=None), sum(each))
    with pytest.raises(ValueError, match=r"^call=2 is not a call of 'conv'; expected one of 2 calls"):
        saliency.internal_influence(model, input, 2, "conv", call=2)


def test_integrated_gradients_at_a_layer_that_runs_twice_are_those_of_its_last_call():
    model, input, (_, second) = twice_parts()
    end, start = (second(x)[0].detach() for x in (input, torch.zeros_like(input)))
    total = 0
    for alpha, weight in positions_and_weights(3, "gausslegendre"):
        y = (start + alpha * (end - start)).requires_grad_()
        total += weight * torch.autograd.grad(model.classifier(y.tanh().mean((2, 3)))[:, 2].sum(), y)[0]
    found = saliency.integrated_gradients(model, input, 2, "conv", n_steps=3, reduction=None)
    close(found, total * (end - start))
    for call in (0, 1, "all"):
        with pytest.raises(ValueError, match=rf"^call={call!r} is not possible on a path of the layer's own"):
            saliency.integrated_gradients(model, input, 2, "conv", call=call)


def test_the_sum_over_calls_of_different_shapes_is_an_error():
    class Pyramid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 2, 3, stride=2, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.conv(x).tanh()).mean((2, 3))

    model = Pyramid().double()
    for method in (saliency.internal_influence, saliency.gradient_x_activation):
        with pytest.raises(ValueError, match=r"^call='all' is not possible .*\(2, 2, 3, 4\), \(2, 2, 2, 2\)"):
            method(model, image(), 1, "conv", call="all", reduction=None)


# --- a linear model -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_steps", [1, 2, 5])
@NOTICES
def test_a_linear_model_has_an_exact_answer(n_steps):
    """f(x) = w x + b: all quadratures, any number of steps, and every baseline give w (x - x')."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Identity(), nn.Flatten(), nn.Linear(2 * 6 * 7, 5)).double()
    weight = model[2].weight.detach()[3].view(2, 6, 7)
    x, start = image(), image(4)
    for layer in ("", "0"):
        for method in QUADRATURES if n_steps > 1 else QUADRATURES[:-1]:
            options = {"n_steps": n_steps, "method": method, "reduction": None}
            found, delta = saliency.integrated_gradients(
                model, x, 3, layer, start, return_convergence_delta=True, **options
            )
            close(found, weight * (x - start))
            assert float(delta.abs().max()) < 1e-12
            found = saliency.internal_influence(model, x, 3, layer, start, **options)
            close(found, weight.expand_as(found))
            found = saliency.conductance(model, x, 3, layer, start, **options)
            at = positions_and_weights(n_steps + 1, method)
            close(found, weight * (x - start) * (at[-1][0] - at[0][0]))  # from the first point to the last
        options = {"n_samples": n_steps, "reduction": None}
        found, delta = saliency.gradient_shap(model, x, 3, layer, start[:1], return_convergence_delta=True, **options)
        close(found, weight * (x - start[:1]))
        assert float(delta.abs().max()) < 1e-12
        for power, expected in (("mean", weight), ("squared", weight**2), ("variance", torch.zeros_like(weight))):
            found = saliency.smooth_gradient(model, x, 3, layer, power=power, **options)
            torch.testing.assert_close(found, expected.expand_as(found), rtol=1e-12, atol=1e-15)


# --- errors ---------------------------------------------------------------------------------------------------------


class Counted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = network()
        self.forwards = 0

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += 1
        return self.parts(x)


_LINES = ("integrated_gradients", "internal_influence", "conductance")
_RANDOM = ("gradient_shap", "smooth_gradient")
_ALL = (*_LINES, *_RANDOM)
BAD: list[tuple[Sequence[str], dict[str, Any], str]] = [
    (_LINES, {"baselines": "black"}, r"baselines='black' .*\(2, 2, 6, 7\)"),
    (_LINES, {"baselines": float("nan")}, "baselines=nan "),
    (_LINES, {"baselines": True}, "baselines=True "),
    (_LINES, {"baselines": torch.zeros(2, 6, 7)}, r"baselines=a tensor of shape \(2, 6, 7\)"),
    (_LINES, {"baselines": torch.zeros(3, 2, 6, 7)}, r"baselines=a tensor of shape \(3, 2, 6, 7\)"),
    (_LINES, {"baselines": torch.zeros(1, 2, 6, 8)}, r"baselines=a tensor of shape \(1, 2, 6, 8\)"),
    (_LINES, {"baselines": torch.tensor(0.0)}, r"baselines=a tensor of shape \(\)"),
    (_LINES, {"baselines": (0, 0)}, "baselines=2 "),
    (_LINES, {"baselines": ()}, "baselines=0 "),
    (_LINES, {"n_steps": 0}, "n_steps=0 "),
    (_LINES, {"n_steps": -3}, "n_steps=-3 "),
    (_LINES, {"n_steps": 2.5}, "n_steps=2.5 "),
    (_LINES, {"n_steps": True}, "n_steps=True "),
    (_LINES, {"n_steps": "5"}, "n_steps='5' "),
    (_LINES, {"n_steps": None}, "n_steps=None "),
    (_LINES, {"method": "simpson"}, "method='simpson' "),
    (_LINES, {"method": None}, "method=None "),
    (_LINES[:2], {"n_steps": 1, "method": "riemann_trapezoid"}, "n_steps=1 .*trapezoid"),
    (_RANDOM, {"n_samples": 0}, "n_samples=0 "),
    (_RANDOM, {"n_samples": 1.5}, "n_samples=1.5 "),
    (_RANDOM, {"n_samples": "3"}, "n_samples='3' "),
    (_RANDOM, {"stdevs": -0.1}, "stdevs=-0.1 "),
    (_RANDOM, {"stdevs": float("inf")}, "stdevs=inf "),
    (_RANDOM, {"stdevs": "0.1"}, "stdevs='0.1' "),
    (_RANDOM, {"stdevs": None}, "stdevs=None "),
    (_RANDOM, {"stdevs": ()}, r"stdevs=\(\) "),
    (_RANDOM, {"stdevs": (0.1, 0.1)}, r"stdevs=\(0.1, 0.1\) "),
    (_RANDOM, {"stdevs": (0.1, "a")}, r"stdevs=\(0.1, 'a'\) "),
    (_RANDOM, {"seed": -1}, "seed=-1 "),
    (_RANDOM, {"seed": 0.5}, "seed=0.5 "),
    (("gradient_shap",), {"baselines": 0.5}, "baselines=0.5 "),
    (("gradient_shap",), {"baselines": torch.zeros(0, 2, 6, 7)}, r"baselines=a tensor of shape \(0, 2, 6, 7\)"),
    (("gradient_shap",), {"baselines": torch.zeros(3, 2, 6)}, r"baselines=a tensor of shape \(3, 2, 6\)"),
    (("gradient_shap",), {"baselines": [torch.zeros(3, 2, 6, 7)] * 2}, r"baselines=a tensor of shape \(3, 2, 6, 7\)"),
    (("gradient_shap",), {"baselines": lambda x: 0}, "baselines=0 "),
    (("smooth_gradient",), {"power": "cubed"}, "power='cubed' "),
    (("smooth_gradient",), {"power": None}, "power=None "),
    (("smooth_gradient",), {"power": ["mean"]}, r"power=\['mean'\] "),
    (_ALL, {"internal_batch_size": 0}, "internal_batch_size=0 "),
    (_ALL, {"internal_batch_size": 1.5}, "internal_batch_size=1.5 "),
    (_ALL, {"reduction": "sum"}, "reduction='sum' "),
    (_ALL, {"call": "first"}, "call='first' "),
    (_ALL, {"call": 1.5}, "call=1.5 "),
    (_ALL, {"debug": True}, "debug=True "),
    (_ALL, {"get_backward_gradient": None}, "get_backward_gradient=None "),
    (("smooth_gradient",), {"return_convergence_delta": True}, "return_convergence_delta=True "),
]


@pytest.mark.parametrize("layer", ["", "parts.1"])
@pytest.mark.parametrize(
    ("method", "options", "words"),
    [
        pytest.param(method, options, words, id=f"{method}, {i}: {next(iter(options))}")
        for i, (methods, options, words) in enumerate(BAD)
        for method in methods
    ],
)
def test_a_wrong_argument_is_one_clear_error_before_the_forward_pass(method, options, words, layer):
    model = Counted().double()
    with pytest.raises(ValueError, match=rf"^({words}).*expected.*\.$"):
        getattr(saliency, method)(model, image(), 1, layer, **options)
    assert model.forwards == 0


def test_an_unknown_name_is_answered_with_those_that_are_known():
    with pytest.raises(ValueError, match=re.escape(", ".join(QUADRATURES))):
        saliency.line(method="simpson")
    with pytest.raises(ValueError, match="mean, squared, variance"):
        saliency.smooth_gradient(network(), image(), 1, power="cubed")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"path": "line"}, "path='line' "),
        ({"path": saliency.line}, "path=<function line"),
        ({"internal_batch_size": 3}, "internal_batch_size=3 .*without a path"),
        ({"return_convergence_delta": True}, "return_convergence_delta=True .*without a path"),
    ],
)
def test_options_of_a_path_without_one_are_errors(options, words):
    model = Counted().double()
    with pytest.raises(ValueError, match=rf"^{words}.*expected.*\.$"):
        saliency.saliency(model, image(), 1, "parts.1", **options)
    assert model.forwards == 0


def test_distributions_of_a_path_of_ones_own_are_checked():
    for baselines in (0.5, None, [0.5], [torch.zeros(0, 2, 6, 7)], torch.tensor(0.5)):
        with pytest.raises(ValueError, match=r"^baselines=.*expected.*\.$"):
            saliency.between(baselines)
    model = Counted().double()
    for baselines in ([image(), image()], [torch.zeros(3, 2, 6)], []):
        with pytest.raises(ValueError, match=r"^baselines=.*expected.*\.$"):
            saliency.saliency(
                model,
                image(),
                1,
                "parts.1",
                path=saliency.between(baselines),
                gradient_to_saliency=saliency.Attribution(),
            )
    assert model.forwards == 0


@pytest.mark.parametrize("method", _ALL)
def test_integers_alone_do_not_move(method):
    class Embedded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(7, 4)
            self.forwards = 0

        def forward(self, x: Tensor) -> Tensor:
            self.forwards += 1
            return self.embedding(x).tanh().mean(1)

    model, input = Embedded().double(), torch.tensor([[1, 2, 3], [4, 5, 6]])
    if method == "integrated_gradients":
        y, start = (model.embedding(x).detach() for x in (input, torch.zeros_like(input)))
        total = 0
        for alpha, weight in positions_and_weights(3, "gausslegendre"):
            z = (start + alpha * (y - start)).requires_grad_()
            total += weight * torch.autograd.grad(z.tanh().mean(1)[:, 2].sum(), z)[0]
        found = saliency.integrated_gradients(model, input, 2, "embedding", n_steps=3, reduction=None)
        close(found, (y - start) * total)
        return
    with pytest.raises(ValueError, match=r"^input=.*expected.*\.$"):
        getattr(saliency, method)(model, input, 2, "embedding", reduction=None)
    assert model.forwards == 0
