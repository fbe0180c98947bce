"""Baselines: each by its definition, and as methods of a run."""

import math
from itertools import combinations

import pytest
import torch

from saliency.cli.choosing import choose_names, make_methods
from saliency.evaluation.baselines import BASELINES, centre, edges, mean_boxes, mean_map, random_map
from saliency.evaluation.cases import labels_of
from saliency.evaluation.datasets import load_dataset
from saliency.evaluation.explainers import named_methods
from saliency.evaluation.running.runner import run
from saliency.evaluation.running.store import read_results
from saliency.networks.models import preprocessing
from saliency.scenes import scene_network

IMAGES = torch.rand(3, 3, 6, 8, generator=torch.Generator().manual_seed(0))
TARGETS = torch.tensor([[1, 4], [0, 2], [1, 4]])


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_is_a_method_of_one_and_of_several_targets(name):
    options = {"prior": torch.rand(5, 5)} if BASELINES[name].prior else {}
    maps = BASELINES[name].function(None, IMAGES, TARGETS, **options)
    assert maps.shape == (3, 2, 6, 8)
    one = BASELINES[name].function(None, IMAGES, TARGETS[:, 1], **options)
    assert torch.equal(one, maps[:, 1:])
    alone = BASELINES[name].function(None, IMAGES[1:2], TARGETS[1:2], **options)
    torch.testing.assert_close(alone, maps[1:2])


@pytest.mark.parametrize("size", [(6, 8), (7, 9), (33, 20), (1, 1)])
def test_the_centre_is_largest_at_the_middle_pixel_of_every_size(size):
    (map,) = centre(None, IMAGES, TARGETS[:, 0], map_size=size)[0]
    height, width = size
    assert map.argmax() == height // 2 * width + width // 2
    assert map.max() == 1
    assert map.min() == 0 or size == (1, 1)


def test_noise_is_uniform_and_drawn_for_image_class_and_seed():
    maps = random_map(None, IMAGES, TARGETS, map_size=(200, 200))
    assert abs(maps.mean() - 0.5) < 0.01
    assert abs(maps.std() - math.sqrt(1 / 12)) < 0.01
    drawn = [*maps.flatten(0, 1), *random_map(None, IMAGES[:1], TARGETS[:1], (200, 200), seed=1)[0]]
    for at, map in enumerate(drawn):
        assert all(abs(torch.corrcoef(torch.stack((map, other)).flatten(1))[0, 1]) < 0.05 for other in drawn[:at])


def test_edges_are_sobel_s_by_hand():
    maps = edges(None, IMAGES, TARGETS[:, 0])
    _, _, height, width = IMAGES.shape
    weights = {(-1, -1): 1, (0, -1): 2, (1, -1): 1, (-1, 1): -1, (0, 1): -2, (1, 1): -1}
    for y, x in ((0, 0), (2, 3), (5, 7), (3, 0)):
        total = 0.0
        for channel in IMAGES[1]:

            def at(dy, dx, channel=channel, y=y, x=x):
                return float(channel[min(max(y + dy, 0), height - 1), min(max(x + dx, 0), width - 1)])

            across = sum(weight * at(dy, dx) for (dy, dx), weight in weights.items())
            down = sum(weight * at(dx, dy) for (dy, dx), weight in weights.items())
            total += math.hypot(across, down)
        assert float(maps[1, 0, y, x]) == pytest.approx(total, abs=1e-5)


def test_the_mean_of_the_boxes_by_counting():
    dataset = load_dataset("scenes", scenes=5)
    boxes = [(instance.box, entry.size) for entry in dataset.annotations for instance in entry.instances]
    prior = mean_boxes(dataset)
    assert prior.shape == (64, 64)
    for row, column in ((0, 0), (20, 41), (32, 32), (63, 10)):
        y, x = (row + 0.5) / 64, (column + 0.5) / 64
        covered = [x0 <= x * w < x1 and y0 <= y * h < y1 for (x0, y0, x1, y1), (h, w) in boxes]
        assert float(prior[row, column]) == pytest.approx(sum(covered) / len(boxes))
    assert torch.equal(mean_map(None, IMAGES, TARGETS, prior, map_size=(64, 64))[2, 1], prior)


def test_a_run_of_all_baselines(tmp_path):
    dataset = load_dataset("scenes", scenes=6)
    names = choose_names(["baselines", "grad_cam"])
    assert names == [*BASELINES, "grad_cam"]
    methods = make_methods(names, [], [], "scenes", "layer4", torchray=False, dataset=dataset)
    for batch_size, out in ((3, "a"), (5, "b")):
        metrics = {"pointing_game": {}, "agreement": {}, "random_logit": {}}
        outcome = run(
            dataset,
            scene_network(),
            preprocessing("scenes"),
            methods,
            metrics,
            tmp_path / out,
            gallery=1,
            batch_size=batch_size,
        )
        assert outcome.failed == 0
        means = {(line.method, line.metric): line.mean for line in outcome.lines}
        seeing = sorted(name for name, method in named_methods(methods).items() if not method.draws)
        assert {"edges", "grad_cam"} <= set(seeing) <= {*BASELINES, "grad_cam"} - {"centre", "random", "mean"}
        assert {pair for pair, metric in means if metric == "agreement"} == set(map("|".join, combinations(seeing, 2)))
        assert means["grad_cam", "pointing_game"] > 0.9
        assert all(means[name, "pointing_game"] < 0.7 for name in BASELINES)
        assert means["centre", "random_logit"] == means["edges", "random_logit"] == 1  # they know no class
    first, second = (
        {row.key: (row.score, row.point) for row in read_results(tmp_path / out) if "grad_cam" not in row.method}
        for out in ("a", "b")
    )
    assert first == second
    assert len(first) == 2 * len(BASELINES) * sum(len(labels_of(entry)) for entry in dataset.annotations)
