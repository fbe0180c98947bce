"""A method run again under its name: the last trial counts, and the report shows what it is asked for."""

import pytest

from saliency import METHODS
from saliency.evaluation.datasets import load_dataset
from saliency.evaluation.report import write_report
from saliency.evaluation.report.analysis import analyse
from saliency.evaluation.report.comparison import describe_run
from saliency.evaluation.report.markdown import markdown_report
from saliency.evaluation.report.page import page_data
from saliency.evaluation.running import runner
from saliency.evaluation.running.runner import run
from saliency.networks.models import preprocessing
from saliency.scenes import scene_network

from .made_run import make_config, write_run
from .test_report import game

DAY = "2026-03-0{}T12:30:00+00:00"


def dated(day, method="mine", metric="pointing_game", **changes):
    return make_config(metric, method, **({"date": DAY.format(day)} | changes))


def make(folder, *entries, methods=None):
    """A run of (scores, configuration) pairs, each with a fingerprint of its own."""
    rows, configs = [], {}
    for number, (scores, config) in enumerate(entries):
        configs[f"f{number}"] = config
        rows += game(scores, config["method"], config["metric"], fingerprint=f"f{number}")
    write_run(folder, rows, configs)
    return analyse(folder, methods)


def means(analysis):
    return {(item.series.line, item.series.column): item.means.cases.value for item in analysis.summaries}


def test_the_last_trial_counts_and_the_earlier_ones_are_listed(tmp_path):
    analysis = make(
        tmp_path,
        ([1.0, 0.0], dated(2, options={"width": 5})),
        ([0.0, 0.0], dated(1, options={"width": 3})),
        ([1.0, 1.0], dated(3, options={"width": 9})),
        ([1.0, 0.0], dated(1, "other")),
    )
    assert means(analysis) == {("mine · 3", "pointing_game"): 1.0, ("other", "pointing_game"): 0.5}
    assert [(item.line, item.date, item.mean.value, item.differences) for item in analysis.earlier] == [
        ("mine · 2", "2026-03-02 12:30 UTC", 0.5, "width=5"),
        ("mine · 1", "2026-03-01 12:30 UTC", 0.0, "width=3"),
    ]
    assert analysis.dates == {"mine · 3": "2026-03-03 12:30 UTC"}
    assert [(pair.first, pair.second) for pair in analysis.pairs] in ([("mine · 3", "other")], [("other", "mine · 3")])
    text = markdown_report(analysis)
    assert "| mine · 3, 2026-03-03 12:30 UTC |" in text
    assert "- mine · 1, 2026-03-01 12:30 UTC: pointing_game 0.0 [0.0, 0.0] of 2 cases; width=3" in text
    data = page_data(tmp_path, analysis)
    assert [item["line"] for item in data["earlier"]] == ["mine · 2", "mine · 1"]


def test_what_makes_a_trial_and_what_another_experiment_or_metric(tmp_path):
    trials = [
        {"options": {"n": 1}},
        {"function": "a.b 2"},
        {"session": "x"},
        {"versions": {"torch": "9"}},
        {"device": "cuda"},
    ]
    for number, changes in enumerate(trials):
        analysis = make(tmp_path / str(number), ([0.0], dated(1)), ([1.0], dated(2, **changes)))
        assert means(analysis) == {("mine · 2", "pointing_game"): 1.0}
        assert (analysis.earlier[0].differences == "another version of the method") == ("function" in changes)
    newer = make(tmp_path / "metric", ([0.0], dated(1)), ([1.0], dated(2, metric_function="m 2")))
    assert means(newer) == {("mine", "pointing_game"): 1.0}
    assert [(item.line, item.differences) for item in newer.earlier] == [("mine", "another version of the metric")]
    others = {
        "dataset": {"name": "voc2007", "root": None, "classes": ["a"]},
        "network": {"arch": "vgg16", "weights": "DEFAULT"},
        "metric_options": {"tolerance": 3},
    }
    for name, change in others.items():
        analysis = make(tmp_path / name, ([0.0], dated(1)), ([1.0], dated(2, **{name: change})))
        assert sorted(means(analysis).values()) == [0.0, 1.0]
        assert not analysis.earlier
        assert all("·" not in line for line, _ in means(analysis))
    of_networks = make(tmp_path / "n", ([0.0], dated(1)), ([1.0], dated(2, network=others["network"])))
    assert set(of_networks.lines) == {"mine (network.arch=scenes)", "mine (network.arch=vgg16)"}


def test_networks_of_one_name_are_numbered_by_date_and_go_by_no_digest(tmp_path):
    networks = [{"arch": "scenes", "weights": "DEFAULT", "tensors": digest * 16} for digest in ("beef", "cafe")]
    analysis = make(
        tmp_path,
        ([0.0], dated(2, network=networks[0])),
        ([1.0], dated(1, network=networks[1])),
        ([1.0], dated(3, network=networks[1], options={"n": 2})),
    )
    assert means(analysis) == {
        ("mine (network.tensors=#2)", "pointing_game"): 0.0,
        ("mine · 2 (network.tensors=#1)", "pointing_game"): 1.0,
    }


def test_a_metric_that_the_last_trial_has_not_keeps_the_trial_before(tmp_path):
    analysis = make(
        tmp_path,
        ([0.0], dated(1, options={"n": 1})),
        ([0.5], dated(1, metric="insertion", options={"n": 1})),
        ([1.0], dated(2, options={"n": 2})),
    )
    assert means(analysis) == {("mine · 2", "pointing_game"): 1.0, ("mine · 1", "insertion"): 0.5}


def test_a_pair_of_an_earlier_trial_is_not_shown(tmp_path):
    def pair(day, **mine):
        parts = {"mine": {"options": {}, **mine}, "other": {"options": {}}}
        return {**dated(day, "mine|other", "agreement"), "methods": parts}

    first, second = dated(1), dated(2, options={"n": 2})
    stale = make(tmp_path / "stale", ([1.0], first), ([0.5], pair(1)), ([1.0], dated(1, "other")), ([1.0], second))
    assert stale.agreements == []
    both = make(
        tmp_path / "both", ([1.0], first), ([0.5], pair(1)), ([1.0], second), ([0.25], pair(2, options={"n": 2}))
    )
    ((_, agreement), _) = both.agreements[0].values
    assert agreement == 0.25
    assert both.agreements[0].title == "agreement"


def test_runs_without_dates_keep_all_their_rows(tmp_path):
    old = [make_config("pointing_game", "mine", options={"n": n}) for n in (1, 2)]
    assert set(make(tmp_path / "old", ([0.0], old[0]), ([1.0], old[1])).lines) == {"mine (n=1)", "mine (n=2)"}
    analysis = make(tmp_path / "mixed", ([0.0], old[0]), ([1.0], dated(2, options={"n": 2})))
    assert analysis.lines == ["mine · 2"]
    assert analysis.earlier[0].date == "of unknown date"
    assert make(tmp_path / "odd", ([0.0], dated(1, date="yesterday"))).lines == ["mine"]


def test_methods_are_chosen_by_name_and_tests_adjusted_for_these(tmp_path):
    number = 9
    entries = [([1.0] * number, dated(1, "a")), ([0.0] * number, dated(1, "b")), ([0.5] * number, dated(1, "c"))]
    entries += [([0.25] * number, dated(2, "c", options={"n": 2}))]
    every = make(tmp_path, *entries)
    chosen = analyse(tmp_path, ["a", "b"])
    assert every.lines == ["a", "c · 2", "b"]
    assert chosen.lines == ["a", "b"]
    p_value = 2 / 2**number
    assert [pair.adjusted for pair in chosen.pairs] == [pytest.approx(p_value)]
    assert {round(pair.adjusted / p_value) for pair in every.pairs} == {3}
    assert not chosen.earlier
    assert analyse(tmp_path, ["c", "b"]).earlier[0].line == "c · 1"
    both = analyse(tmp_path, ["c · 1", "c · 2"])
    assert (both.lines, both.earlier) == (["c · 1", "c · 2"], [])
    assert means(analyse(tmp_path, ["c · 1", "a"])) == {("c · 1", "pointing_game"): 0.5, ("a", "pointing_game"): 1.0}
    for wrong, message in (
        (["d"], "method='d' is unknown; did you mean"),
        ("a", "methods='a' is not a list"),
        (3, "=3"),
    ):
        with pytest.raises(ValueError, match=message):
            write_report(tmp_path, tmp_path / "out", wrong)
    assert not (tmp_path / "out").exists()


def test_what_is_tied_is_told_from_no_best(tmp_path):
    """Of two methods that are best, one has failed so often that nothing can be told from it."""
    best, worst = [1.0] * 12, [0.0] * 12
    analysis = make(tmp_path, (best, dated(1, "a")), ([1.0] + [None] * 11, dated(1, "b")), (worst, dated(1, "c")))
    assert {item.series.line: item.mark for item in analysis.summaries} == {"a": "best", "b": "best", "c": ""}


def test_the_header_names_a_network_of_one_s_own_and_its_weights(tmp_path):
    own = {"tensors": "beef" * 16, "structure": "cafe" * 16, "class": "Net"}
    assert (
        dict(describe_run(make(tmp_path, ([1.0], dated(1, network=own)))))["Network"] == "Net with the weights beefbeef"
    )


def grad(model, input, target, power=1):
    return METHODS["gradient"].function(model, input, target) ** power


def test_runs_in_one_folder(tmp_path, monkeypatch):
    """Two trials by options, then one by another process that knows no version; the metric alone changes nothing."""

    def play(options, metrics, method=grad):
        dataset = load_dataset("scenes", scenes=2)
        methods = {"mine": (method, options), "plain": METHODS["gradient"].function}
        run(dataset, scene_network(), preprocessing("scenes"), methods, metrics, tmp_path, gallery=1)
        return analyse(tmp_path)

    play({"power": 1}, ["pointing_game", "energy_pointing_game", "agreement"])
    analysis = play({"power": 2}, ["pointing_game", "agreement"])
    assert set(analysis.lines) == {"mine · 1", "mine · 2", "plain"}
    assert {item.series.line for item in analysis.summaries if item.series.column == "pointing_game"} == {
        "mine · 2",
        "plain",
    }
    assert [(item.line, item.differences) for item in analysis.earlier] == [("mine · 1", "power=1")]
    assert [item.methods for item in analysis.agreements] == [["mine", "plain"]]
    assert play({"power": 1}, ["pointing_game"]).earlier[0].line == "mine · 1"  # run again, the first is the last
    monkeypatch.setattr(runner, "SESSION", "later")
    analysis = play({"power": 1}, ["pointing_game"], lambda *call, **options: grad(*call, **options))
    assert {item.series.line for item in analysis.summaries if item.series.column == "pointing_game"} == {
        "mine · 3",
        "plain",
    }
    write_report(tmp_path, tmp_path / "out", ["plain"])
    data = page_data(tmp_path, analyse(tmp_path, ["plain"]))
    assert {own["method"] for case in data["gallery"] for own in case["maps"]} == {"plain"}
