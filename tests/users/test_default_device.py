"""``torch.set_default_device``: tensors of our own are made where they are needed, not where the caller's are."""

import pytest
import torch

import saliency
from saliency.evaluation.baselines import random_map
from saliency.evaluation.datasets import load_dataset
from saliency.evaluation.metrics import METRICS
from saliency.evaluation.running.runner import run
from saliency.evaluation.running.store import read_results
from saliency.networks.models import preprocessing
from saliency.scenes import scene_network
from tests import cases
from tests.cases import METHOD_CASES, crossed

# Where nothing has a value: a tensor that is made there by mistake cannot be used with those of the call.
ELSEWHERE = torch.device("meta")
TARGETS = {"class": 1, "classes": [1, 2], "columns": [[0, 1], [2, 3]], "entries": [(1,), (0,)], "function": None}


@crossed("target", TARGETS, few=["class"], methods=METHOD_CASES)
def test_methods(method, target):
    case = cases.TRANSFORMER if method.kind == "attention" else cases.IN_PLACE
    given = TARGETS[target] or (lambda output: output[:, 1] - output[:, 2])
    if target == "function" and "functions" in method.lacks:
        pytest.skip("takes no function")
    model, input = case.model(), case.input()
    options = {"resize": True, "smooth": 0.05}
    expected = method(model, input, given, **options)
    fresh = case.model()
    with ELSEWHERE:
        found = method(fresh, input, given, **options)
    assert torch.equal(found, expected)


WRAPPED = {
    "smooth_grad": saliency.smooth_grad(saliency.gradient),
    "augmented": saliency.augmented(saliency.gradient),
    "low_pass": saliency.low_pass(saliency.gradient, 0.5),
    "normalised": saliency.normalised(saliency.gradient),
}


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_wrappers(wrapper):
    model, input = cases.IN_PLACE.model(), cases.IN_PLACE.input()
    expected = WRAPPED[wrapper](model, input, 1)
    with ELSEWHERE:
        assert torch.equal(WRAPPED[wrapper](model, input, 1), expected)


def test_a_run(tmp_path):
    chosen = {
        "grad_cam": (saliency.grad_cam, {}),
        "rise": (saliency.rise, {"num_masks": 8}),
        "random": (random_map, {}),
    }
    metrics = {name: {} for name in METRICS}
    model = scene_network()

    def play(folder):
        run(load_dataset("scenes", scenes=2), model, preprocessing("scenes"), chosen, metrics, folder)
        return {(*row.case, row.method, row.metric): (row.score, row.error) for row in read_results(folder)}

    expected = play(tmp_path / "here")
    with ELSEWHERE:
        found = play(tmp_path / "there")
    assert found == expected


def test_a_photo():
    model, image = scene_network(), torch.rand(3, 64, 64)
    expected = saliency.explain(model, image, [1, 2], methods=("grad_cam", "gradient")).maps
    with ELSEWHERE:
        found = saliency.explain(model, image, [1, 2], methods=("grad_cam", "gradient")).maps
    assert all(torch.equal(found[name], expected[name]) for name in expected)
