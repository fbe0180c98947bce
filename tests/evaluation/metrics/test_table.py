"""The table of metrics: what each looks at, its options, and metrics of pairs and of the whole data set in a run."""

from inspect import signature

import pytest
import torch

from saliency import METHODS
from saliency.evaluation.datasets import load_dataset
from saliency.evaluation.metrics import EVIDENCE, METRICS, Metric, faithfulness, localisation, randomisation
from saliency.evaluation.report.analysis import analyse
from saliency.evaluation.running.runner import run
from saliency.evaluation.running.store import read_results
from saliency.networks.models import preprocessing
from saliency.scenes import scene_network


@pytest.mark.parametrize("name", METRICS)
def test_the_options_of_a_metric_are_those_of_its_function(name):
    metric = METRICS[name]
    parameters = signature(metric.function).parameters
    looked_at = {"case": metric.evidence, "pair": ["a", "b"], "data set": ["ious"]}[metric.kind]
    assert list(metric.defaults) == [parameter for parameter in parameters if parameter not in looked_at]
    assert metric.options.keys() <= metric.defaults.keys()
    for option, value in metric.defaults.items():
        assert value == metric.options.get(option, parameters[option].default)
    assert bool(metric.of) == (metric.kind == "data set")
    assert not metric.of or METRICS[metric.of].area


def test_what_else_the_metrics_have_in_common_with_their_functions():
    assert METRICS["insertion"].function is faithfulness.insertion
    assert METRICS["pointing_game"].defaults == {"tolerance": 15}
    assert METRICS["pointing_game"].evidence == ["saliency", "masks"]
    functions = {METRICS[f"{kind}_randomisation"].function for kind in ("cascading", "independent")}
    assert functions == {randomisation.parameter_randomisation}
    assert set(METRICS["random_logit"].evidence) <= set(EVIDENCE)


def play(out, metrics, methods=("grad_cam", "gradient")):
    chosen = {name: (METHODS[name].function, {}) for name in methods}
    return run(
        load_dataset("scenes", scenes=6), scene_network(), preprocessing("scenes"), chosen, metrics, out, gallery=0
    )


@pytest.mark.parametrize("delta", [0.5, 0.8, (0.3, 0.5, 0.7)])
def test_a_metric_of_the_data_set_is_its_function_of_all_curves(tmp_path, delta):
    outcome = play(tmp_path, {"max_box_accuracy": {"delta": delta}, "box_iou": {"components": "all"}})
    means = {(line.method, line.metric): line for line in outcome.lines}
    for name in ("grad_cam", "gradient"):
        curves = [row.curve for row in read_results(tmp_path) if row.method == name]
        line = means[name, "max_box_accuracy"]
        assert line.mean == pytest.approx(localisation.max_box_accuracy(torch.tensor(curves), delta).item())
        assert (line.cases, line.failures, line.missing) == (len(curves), 0, 0)
    assert {row.metric for row in read_results(tmp_path)} == {"box_iou"}
    analysis = analyse(tmp_path)
    for item in analysis.summaries:
        assert item.box_accuracy[0].value == pytest.approx(means[item.series.method, "max_box_accuracy"].mean)
    assert analysis.box_title("box_iou") == "MaxBoxAcc of box_iou" + (
        "" if delta == 0.5 else f", IoU ≥ {delta if isinstance(delta, float) else list(delta)}"
    )


def test_a_metric_of_the_data_set_brings_the_one_that_it_looks_at(tmp_path):
    outcome = play(tmp_path, {"max_box_accuracy": {}}, ["grad_cam"])
    assert [line.metric for line in outcome.lines] == ["box_iou", "max_box_accuracy"]
    again = play(tmp_path, {"max_box_accuracy": {"delta": 0.9}}, ["grad_cam"])
    assert again.lines[0] == outcome.lines[0]
    assert again.lines[1].mean < outcome.lines[1].mean
    with pytest.raises(ValueError, match="'components' is not an option of max_box_accuracy"):
        play(tmp_path, {"max_box_accuracy": {"components": "all"}})


def test_a_metric_of_one_s_own_of_each_kind(tmp_path, monkeypatch):
    def covers(masks, saliency, share=0.5):
        return ((saliency > share * saliency.amax((2, 3), keepdim=True))[:, 0] & masks).flatten(1).float().mean(1)

    def apart(a, b, power=1):
        return (a - b).abs().pow(power).flatten(1).mean(1)

    def spread(curves, scale=1.0):
        return scale * curves.std(0).mean()

    monkeypatch.setitem(METRICS, "covers", Metric(covers, "case", "", {"share": 0.25}))
    monkeypatch.setitem(METRICS, "apart", Metric(apart, "pair", "", higher_is_better=False))
    monkeypatch.setitem(METRICS, "spread", Metric(spread, "data set", "", of="mask_iou"))
    outcome = play(tmp_path, {"covers": {}, "apart": {"power": 2}, "spread": {"scale": 10.0}})
    lines = {(line.method, line.metric): line for line in outcome.lines}
    assert outcome.failed == 0
    rows = list(read_results(tmp_path))
    curves = torch.tensor([row.curve for row in rows if row.metric == "mask_iou" and row.method == "grad_cam"])
    assert lines["grad_cam", "spread"].mean == pytest.approx(10 * curves.std(0).mean().item(), rel=1e-5)
    assert lines["grad_cam|gradient", "apart"].mean > 0
    scene = load_dataset("scenes", scenes=1)
    label = scene.annotations[0].instances[0].label
    map = METHODS["grad_cam"].function(scene_network(), scene.image(0)[None], label, resize=True)
    mask = torch.stack([t.mask() for t in scene.annotations[0].instances if t.label == label]).any(0)
    expected = float((mask & (map[0, 0] > 0.25 * map.max())).float().mean())
    (row,) = [row for row in rows if row.key[:4] == ("scene0", label, "grad_cam", "covers")]
    assert row.score == pytest.approx(expected, abs=1e-4)
