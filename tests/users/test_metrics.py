"""Metrics and the runner, as users meet them: maps without a maximum, methods that write, networks with hooks."""

import csv
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from saliency import grad_cam, gradient
from saliency.evaluation.cases import Annotation, Instance
from saliency.evaluation.metrics.faithfulness import curve_area, deletion, insertion, road
from saliency.evaluation.metrics.localisation import pointing_game
from saliency.evaluation.metrics.randomisation import parameter_groups, parameter_randomisation
from saliency.evaluation.report import write_report
from saliency.evaluation.running.runner import run
from saliency.evaluation.running.store import read_results
from saliency.networks.models import Preprocessing


def identity(output):
    return output


class Photos:
    """Four random photos of 12 x 16 pixels with one object each."""

    name, root, source, classes, problems = "photos", None, "", ("a", "b"), ()
    annotations = tuple(Annotation(f"p{i}", (12, 16), (Instance(i % 2, (2, 3, 9, 8)),)) for i in range(4))

    def image(self, index):
        return torch.rand(3, 12, 16, generator=torch.Generator().manual_seed(index))


PREPROCESSING = Preprocessing(12, 1, False, (0.0,) * 3, (1.0,) * 3, ("a", "b"))


def network():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    return nn.Sequential(*layers).eval()


def play(folder, methods, metrics=("pointing_game", "deletion"), **options):
    chosen = {name: method if isinstance(method, tuple) else (method, {}) for name, method in methods.items()}
    options = {"gallery": 0, "batch_size": 2, **options}
    return run(
        Photos(),
        network(),
        PREPROCESSING,
        chosen,
        metrics if isinstance(metrics, dict) else {metric: {} for metric in metrics},
        folder,
        **options,
    )


def scores(folder, method):
    return {(row.image, row.metric): (row.score, row.error) for row in read_results(folder) if row.method == method}


def fills(model, input, target):
    maps = gradient(model, input, target)
    input.zero_()
    return maps


def scales(model, input, target):
    return gradient(model, input.mul_(3), target)


def swaps_targets(model, input, target):
    target.copy_(1 - target)
    return gradient(model, input, target)


@pytest.mark.parametrize("writer", [fills, scales, swaps_targets])
def test_what_a_method_writes_into_its_input_is_not_seen_by_the_next(tmp_path, writer):
    metrics = ("pointing_game", "deletion", "random_logit", "cascading_randomisation")
    cam = (grad_cam, {"saliency_layer": "0", "shared": True})
    play(tmp_path / "alone", {"cam": cam, "gradient": gradient}, metrics)
    play(tmp_path / "after", {"writer": writer, "cam": cam, "gradient": gradient}, metrics)
    for method in ("cam", "gradient"):
        assert scores(tmp_path / "after", method) == scores(tmp_path / "alone", method)
    assert {error for _, error in scores(tmp_path / "after", "writer").values()} == {None}


class Twice(nn.Module):
    def forward(self, weight):
        return 2 * weight


def parametrised(module):
    parametrize.register_parametrization(module, "weight", Twice())
    return module


HOOKS = {
    "weight_norm": torch.nn.utils.weight_norm,
    "spectral_norm": torch.nn.utils.spectral_norm,
    "pruned": lambda module: prune.l1_unstructured(module, "weight", 0.3),
    "pruned channels": lambda module: prune.random_structured(module, "weight", amount=1, dim=0),
    "parametrized weight_norm": parametrizations.weight_norm,
    "parametrized spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "a parametrisation of one's own": parametrised,
}


def hooked(hook):
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # weight_norm is deprecated, and in use
        layers = hook(nn.Conv2d(3, 8, 3)), nn.ReLU(), hook(nn.Conv2d(8, 8, 3)), nn.ReLU()
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), hook(nn.Linear(8, 5))).eval()


def explained_with(network, input, target):
    """Maps, and the weights that the network used for them: what hooks have made is put back afterwards."""
    used = {}

    def note(layer, args, output):
        used[layer] = layer.weight.detach().clone()

    layers = [network[at] for at in (0, 2, 6)]
    handles = [layer.register_forward_hook(note) for layer in layers]
    maps = gradient(network, input, target)
    for handle in handles:
        handle.remove()
    return maps, [used[layer] for layer in layers]


@pytest.mark.parametrize("cascading", [True, False])
@pytest.mark.parametrize("hook", HOOKS)
def test_parameters_behind_hooks_are_drawn_anew(hook, cascading):
    model, input, target = hooked(HOOKS[hook]), torch.rand(2, 3, 12, 12), torch.tensor([1, 2])
    model(input)  # with gradients: old hooks leave a weight with its graph on the layer
    weights = [model[at].weight.detach().clone() for at in (0, 2, 6)]
    seen = []

    def explain(network, input, target):
        maps, weights = explained_with(network, input, target)
        seen.append(weights)
        return maps

    assert len(parameter_groups(model)) == 3
    found = parameter_randomisation(model, explain, input, target, gradient(model, input, target), cascading)
    assert found.shape == (2, 3)
    assert found.isfinite().all()
    assert (found < 0.99).all()
    drawn = [[2], [1, 2], [0, 1, 2]] if cascading else [[2], [1], [0]]
    for step, network_weights in zip(drawn, seen, strict=True):
        changed = [not torch.equal(a, b) for a, b in zip(network_weights, weights, strict=True)]
        assert changed == [at in step for at in range(3)]
    assert all(torch.equal(model[at].weight, weight) for at, weight in zip((0, 2, 6), weights, strict=True))


@pytest.mark.parametrize("hook", ["spectral_norm", "parametrized spectral_norm"])
def test_a_weight_drawn_anew_has_the_norm_that_its_hook_gives_it(hook):
    norms = []

    def explain(network, input, target):
        maps, weights = explained_with(network, input, target)
        norms.append(torch.linalg.matrix_norm(weights[2], 2).item())
        return maps

    input = torch.rand(1, 3, 12, 12)
    parameter_randomisation(hooked(HOOKS[hook]), explain, input, torch.tensor([0]), torch.rand(1, 1, 12, 12), True)
    assert norms == pytest.approx([1] * 3, abs=0.02)


@pytest.mark.parametrize("hook", ["pruned", "pruned channels"])
def test_what_is_pruned_stays_pruned(hook):
    zeros = []

    def explain(network, input, target):
        maps = gradient(network, input, target)
        zeros.append((network[6].weight == 0).tolist())
        return maps

    model, input = hooked(HOOKS[hook]), torch.rand(1, 3, 12, 12)
    parameter_randomisation(model, explain, input, torch.tensor([0]), torch.rand(1, 1, 12, 12), steps=1)
    assert zeros == [(model[6].weight == 0).tolist()]


def chance_by_hand(map, mask, tolerance):
    largest = (map == map.max()).nonzero().tolist()
    inside = mask.nonzero().tolist()
    near = [any((y - v) ** 2 + (x - u) ** 2 <= min(tolerance, 1e6) ** 2 for v, u in inside) for y, x in largest]
    return sum(near) / len(near)


@pytest.mark.parametrize("tolerance", [0, 1, 2.5, 3, 100, 1e200])
def test_the_pointing_game_of_equals_is_the_chance_of_a_hit(tolerance):
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(6, 9, 14, generator=generator) > 0.97
    masks[:, 4, 7] = True
    maps = torch.randint(0, 4, (6, 1, 9, 14), generator=generator).float()
    maps[0], maps[1], maps[2, 0, 3, 3] = 0, -2.5, 9  # constant maps, and one with a single maximum
    found = pointing_game(maps, masks, tolerance)
    expected = [chance_by_hand(map[0], mask, tolerance) for map, mask in zip(maps, masks, strict=True)]
    assert found.tolist() == pytest.approx(expected)
    if tolerance == 0:
        assert found[0].item() == pytest.approx(masks[0].float().mean().item())


@pytest.mark.parametrize("value", [0.0, 1.0, -3.5])
def test_a_constant_map_is_as_good_as_chance(value):
    """One pixel counts: over many seeds the area under the curve is a half, as of any random order."""
    image = torch.ones(1, 1, 4, 5)
    constant = torch.full((1, 1, 4, 5), value)
    options = {"activation": identity}
    deleted, inserted, both = [], [], []
    for seed in range(100):
        asked = nn.Flatten(), image, 7, constant
        deleted.append(curve_area(deletion(*asked, 20, seed=seed, **options)).item())
        inserted.append(curve_area(insertion(*asked, 20, "zero", seed=seed, **options)).item())
        both.append(road(nn.Flatten(), image.cumsum(3), 7, constant, [30], 0, seed=seed, **options).item())
    for found in (deleted, inserted):
        assert sum(found) / 100 == pytest.approx(0.5, abs=0.12)  # 4 standard errors of a uniform value
        assert len(set(found)) > 10
    assert len(set(both)) > 1
    again = [deletion(nn.Flatten(), image, 7, constant, 20, seed=3, **options) for _ in range(2)]
    assert torch.equal(*again)


def constant_on_two(model, input, target):
    maps = gradient(model, input, target)
    maps[0] = 0.25
    return maps


def zero(model, input, target):
    return torch.zeros(len(input), target.shape[1], *input.shape[2:])


def one(model, input, target):
    return torch.ones(len(input), target.shape[1], 1, 1)


def test_constant_maps_are_counted(tmp_path):
    methods = {"gradient": gradient, "some": constant_on_two, "zero": zero, "one": one}
    outcome = play(tmp_path, methods, {"pointing_game": {"tolerance": 2}, "deletion": {}})
    counts = {"gradient": 0, "some": 2, "zero": 4, "one": 4}
    for metric in ("pointing_game", "deletion"):
        assert {line.method: line.constant for line in outcome.lines if line.metric == metric} == counts
    mask = torch.zeros(12, 16, dtype=torch.bool)
    mask[3:8, 2:9] = True
    chance = chance_by_hand(torch.zeros(12, 16), mask, 2)
    assert 35 / 192 < chance < 1
    for row in read_results(tmp_path):
        assert row.metric != "pointing_game" or row.method != "zero" or row.score == pytest.approx(chance)
    assert {row.point for row in read_results(tmp_path) if row.method == "one"} == {None}
    paths = {path.name: path for path in write_report(tmp_path)}
    with paths["summary.csv"].open(newline="") as file:
        lines = [row for row in csv.DictReader(file) if row["subset"] == "all" and row["metric"] == "pointing_game"]
    assert {row["line"]: int(row["constant_maps"]) for row in lines} == counts
    text = paths["report.md"].read_text()
    assert "- zero, pointing\\_game: 4 of 4 maps" in text or "- zero, pointing_game: 4 of 4 maps" in text
    assert "gradient, pointing_game: 0" not in text
    assert "| some | 4 | 0 |" in text


MESSAGES = ["broken"]


def broken(model, input, target):
    raise ValueError(MESSAGES[-1])


@pytest.mark.parametrize("tries", [["first", "second"], ["first", "second", "third"], ["first", "first"]])
def test_report_and_terminal_show_the_last_error_of_a_case(tmp_path, tries):
    for message in tries:
        MESSAGES[-1] = message
        outcome = play(tmp_path, {"broken": broken}, ["pointing_game"], retry_errors=True)
    assert [line.error for line in outcome.lines] == [f"p0: ValueError: {tries[-1]}"]
    report = {path.name: path.read_text() for path in write_report(tmp_path)}
    for name in ("report.md", "cases.csv"):
        assert f"ValueError: {tries[-1]}" in report[name]
        assert tries[-1] == tries[0] or tries[0] not in report[name]
