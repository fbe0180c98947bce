"""Reports of small runs whose numbers are known."""

import csv
import json
import math

import pytest

from saliency.evaluation.report import write_report
from saliency.evaluation.report.analysis import analyse
from saliency.evaluation.report.comparison import compare_published, describe_run
from saliency.evaluation.report.markdown import markdown_report
from saliency.evaluation.report.published import published_accuracy, published_setting, setting_differences
from saliency.evaluation.report.series import read_series
from saliency.evaluation.running.store import Result

from .made_run import make_config, write_run


def game(scores, method="cam", metric="pointing_game", fingerprint=None, **fields):
    """A row for each score: image 0, 1 … and class 0, unless ``scores`` maps (image, class) to the score."""
    cases = scores if isinstance(scores, dict) else {(image, 0): score for image, score in enumerate(scores)}
    name = fingerprint or f"{metric}-{method}"
    return [
        Result(
            f"photo{image}", target, method, metric, score, 0.5, None if score is not None else "broken", name, **fields
        )
        for (image, target), score in cases.items()
    ]


def make(folder, *groups, configs=None):
    rows = [row for group in groups for row in group]
    made = {row.fingerprint: make_config(row.metric, row.method) for row in rows}
    write_run(folder, rows, made | (configs or {}))
    return analyse(folder)


def test_means_failures_and_seconds(tmp_path):
    scores = {(0, 1): 1.0, (0, 4): 0.0, (1, 1): 1.0, (2, 1): 1.0, (3, 4): None}
    item = make(tmp_path, game(scores)).summaries[0]
    assert item.means.cases.value == 0.75
    assert item.means.classes.value == 0.5  # class 1: 1, class 4: 0, the others have no case and do not count
    assert {label: found.value for label, found in item.means.per_class.items()} == {1: 1, 4: 0}
    assert (item.failures, item.seconds, item.share) == (1, 0.5, 1)


def test_difficult_cases_have_their_own_means(tmp_path):
    easy, hard = game({(0, 0): 1.0, (1, 0): 1.0}), game({(2, 0): 0.0, (3, 1): 1.0, (4, 1): 1.0}, difficult=True)
    means = make(tmp_path, easy, hard).summaries[0].means
    assert means.difficult_cases.value == pytest.approx(2 / 3)
    assert (means.difficult_classes.value, means.difficult_cases.cases) == (0.5, 3)
    assert means.cases.value == pytest.approx(4 / 5)


def test_configurations_are_not_merged_and_are_named_by_what_differs(tmp_path):
    few, many = (make_config("pointing_game", "rise", options={"num_masks": number, "seed": 0}) for number in (50, 500))
    near = make_config("pointing_game", "rise", options=many["options"], metric_options={"tolerance": 0})
    groups = [game([score, score], "rise", fingerprint=name) for name, score in (("a", 0.0), ("b", 1.0), ("c", 0.5))]
    analysis = make(tmp_path, *groups, game([1.0], "cam"), configs={"a": few, "b": many, "c": near})
    found = {(item.series.line, item.series.column): item.means.cases.value for item in analysis.summaries}
    assert found == {
        ("cam", "pointing_game (tolerance not set)"): 1,
        ("rise (num_masks=50)", "pointing_game (tolerance not set)"): 0,
        ("rise (num_masks=500)", "pointing_game (tolerance not set)"): 1,
        ("rise (num_masks=500)", "pointing_game (tolerance=0)"): 0.5,
    }


def test_configurations_that_look_alike_or_are_missing_go_by_their_fingerprint(tmp_path):
    folder = tmp_path / "run"
    rows = [*game([0.0], fingerprint="a"), *game([1.0], fingerprint="b"), *game([1.0], "gone", fingerprint="c")]
    write_run(folder, rows, {name: make_config("pointing_game", "cam") for name in ("a", "b")})
    series, problems = read_series(folder)
    assert [item.line for item in series] == ["cam (fingerprint=a)", "cam (fingerprint=b)", "gone"]
    assert problems == ["configs/c.json cannot be read (FileNotFoundError); its options and classes are unknown."]
    (folder / "configs" / "c.json").write_text("[1]", "utf-8")
    assert "no JSON object" in read_series(folder)[1][0]
    with (folder / "rows-0.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"image": 3}\n')
    assert any("rows-0.jsonl" in problem for problem in read_series(folder)[1])


def test_classes_of_one_name_stay_two(tmp_path):
    config = make_config("pointing_game", "cam", dataset={"name": "x", "classes": ["crane", "dog", "crane"]})
    rows = game({(0, 0): 1.0, (0, 2): 0.0, (1, 1): 1.0, (1, 7): 1.0}, fingerprint="a")
    series = make(tmp_path, rows, configs={"a": config}).series[0]
    assert [series.class_name(label) for label in (0, 1, 2, 7)] == ["crane (0)", "dog", "crane (2)", "class 7"]


def test_pairs_are_compared_on_the_cases_that_both_have(tmp_path):
    first = game([1.0, 1.0, 1.0, None, 0.0], "first")
    second = game([0.0, 0.0, 0.0, 1.0], "second")
    pair = make(tmp_path, first, second).pairs[0]
    # 3 images, each +1: of the 8 assignments of signs 2 are as extreme.
    assert pair[1:] == ("first", "second", 3, 1.0, 0.25, 0.25)


def test_the_cases_of_an_image_flip_together(tmp_path):
    first = game({(image, label): 1.0 for image in range(2) for label in range(5)}, "first")
    second = game({(image, label): 0.0 for image in range(2) for label in range(5)}, "second")
    assert make(tmp_path, first, second).pairs[0].p_value == 0.5


@pytest.mark.parametrize(("metric", "best"), [("pointing_game", "high"), ("deletion", "low")])
def test_the_best_is_marked_and_what_no_test_tells_from_it(tmp_path, metric, best):
    number = 30
    groups = [
        game([0.9] * number, "high", metric),
        game([0.9] * (number - 1) + [0.5], "nearly", metric),
        game([0.1] * number, "low", metric),
        game([0.1] * (number - 1) + [0.5], "hardly", metric),
    ]
    marks = {item.series.line: item.mark for item in make(tmp_path, *groups).summaries}
    tied = {"high": "nearly", "low": "hardly"}[best]
    assert marks == dict.fromkeys(marks, "") | {best: "best", tied: "tied"}


def test_an_unknown_metric_has_no_best(tmp_path):
    analysis = make(tmp_path, game([1.0], "a", "of_another_time"), game([0.0], "b", "of_another_time"))
    assert [item.mark for item in analysis.summaries] == ["", ""]


def test_curves_are_averaged_and_give_box_accuracy(tmp_path):
    curves = [(0.6, 0.4), (0.1, 0.9), (0.2, 0.5)]
    rows = [
        row._replace(curve=curve) for row, curve in zip(game([0.5, 0.5, 0.35], metric="box_iou"), curves, strict=True)
    ]
    item = make(tmp_path, rows).summaries[0]
    assert item.curve == pytest.approx((0.3, 0.6))
    assert item.box_accuracy[0].value == pytest.approx(2 / 3)
    assert item.box_accuracy[1] == 1


def test_shorter_curves_are_drawn_out(tmp_path):
    rows = [row._replace(curve=curve) for row, curve in zip(game([0, 0]), [(0.0, 1.0), (1.0, 1.0, 1.0)], strict=True)]
    assert make(tmp_path, rows).summaries[0].curve == pytest.approx((0.5, 0.75, 1.0))


def test_agreement_is_a_symmetric_matrix_apart_from_the_tables(tmp_path):
    rows = [*game([0.2, 0.4], "a|b", "agreement"), *game([-0.5], "c|a", "agreement"), *game([1.0], "a")]
    analysis = make(tmp_path, rows)
    (found,) = analysis.agreements
    assert found.methods == ["a", "b", "c"]
    expected = [[1, 0.3, -0.5], [0.3, 1, math.nan], [-0.5, math.nan, 1]]
    assert found.values == [pytest.approx(row, nan_ok=True) for row in expected]
    assert analysis.lines == ["a"]
    assert not analysis.pairs


def test_failures_are_listed_with_their_cases(tmp_path):
    analysis = make(tmp_path, game([1.0, None, None]))
    (found,) = analysis.failures
    assert found == ("cam", "pointing_game", "broken", ["photo1 (circle)", "photo2 (circle)"])
    text = markdown_report(analysis)
    assert "2 failed: broken In: photo1 (circle), photo2 (circle)" in text
    only = make(tmp_path / "all", game([None, None]))
    assert math.isnan(only.summaries[0].means.cases.value)
    assert "| cam | – |" in markdown_report(only)


def test_the_files(tmp_path):
    rows = [
        *game([1.0, 0.0, None], "cam|wide"),
        *[row._replace(curve=(0.0, 1.0), point=(3, 4)) for row in game([0.5], "rise", "insertion")],
    ]
    make(tmp_path / "run", rows)
    paths = write_report(tmp_path / "run", tmp_path / "out")
    assert [path.name for path in paths] == ["cases.csv", "summary.csv", "report.md", "report.html"]
    assert sorted(paths) == sorted((tmp_path / "out").iterdir())
    with paths[0].open(encoding="utf-8", newline="") as file:
        cases = list(csv.DictReader(file))
    assert len(cases) == len(rows)
    assert sorted((case["image"], case["score"], case["error"]) for case in cases if case["method"] == "cam|wide") == [
        ("photo0", "1.0", ""),
        ("photo1", "0.0", ""),
        ("photo2", "", "broken"),
    ]
    assert [(json.loads(case["curve"]), json.loads(case["point"])) for case in cases if case["curve"]] == [
        ([0, 1], [3, 4])
    ]
    with paths[1].open(encoding="utf-8", newline="") as file:
        summary = {(row["line"], row["subset"]): row for row in csv.DictReader(file)}
    whole = summary["cam|wide", "all"]
    assert (whole["cases"], whole["failures"], whole["mean"]) == ("2", "1", "0.5")
    assert summary["cam|wide", "difficult"]["mean"] == ""
    assert summary["cam|wide", "class circle"]["mean"] == "0.5"
    text = paths[2].read_text("utf-8")
    assert "| cam\\|wide | 50.0 [0.0, 100.0] |" in text
    before = [path.read_bytes() for path in paths]
    assert [path.read_bytes() for path in write_report(tmp_path / "run", tmp_path / "out")] == before


def test_a_folder_without_rows_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no rows; expected the folder of a run"):
        write_report(tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_heading_names_the_run(tmp_path):
    facts = dict(describe_run(make(tmp_path, game([1.0, None]), game([1.0], "b"))))
    assert facts == {
        "Data set": "scenes",
        "Network": "scenes DEFAULT",
        "Images": "2",
        "Cases": "2",
        "Results": "3 rows, 1 failed",
        "Versions": "torch 2.6.0",
    }


def test_published_numbers():
    assert published_accuracy("voc2007", "vgg16_voc")["rise"] == (86.9, 75.1)
    assert published_accuracy("coco2014", "resnet50_coco")["contrastive_excitation_backprop"] == (58.5, 53.6)
    assert published_setting("imagenet", "resnet50") is None
    assert published_accuracy("voc2007", "vit_b_16") == {}


def test_the_setting_differs_in_what_is_said():
    assert setting_differences("voc2007", "vgg16_voc", "DEFAULT", 4952, 15) == []
    found = " ".join(setting_differences("coco2017-val", "resnet101", "DEFAULT", 500, 5))
    for part in (
        "data set is coco2017-val",
        "network is resnet101",
        "tuned on COCO",
        "tolerance is 5 px",
        "500 images",
    ):
        assert part in found
    assert "data set is voc2007-trainval" in setting_differences("voc2007-trainval", "vgg16_voc", "", 9999, None)[0]


def test_a_run_is_shown_beside_the_published_table(tmp_path):
    setting = {
        "dataset": {"name": "voc2007", "classes": ["a", "b"]},
        "network": {"arch": "resnet50_voc", "weights": "DEFAULT"},
    }
    configs = {f"pointing_game-{name}": make_config("pointing_game", name, **setting) for name in ("grad_cam", "own")}
    configs["pointing_game-centre"] = make_config("pointing_game", "centre", **setting)
    groups = [game([1.0, 0.0], name) for name in ("grad_cam", "own", "centre")]
    analysis = make(tmp_path, *groups, configs=configs)
    (found,) = compare_published(analysis)
    rows = {row.line: (row.measured[0], row.published) for row in found.rows}
    assert rows["grad_cam"] == (0.5, (90.4, 82.3))
    assert rows["own"] == (0.5, (None, None))
    assert rows["centre"] == (0.5, (69.6, 42.4))
    assert rows["rise"][1] == (86.4, 78.8)
    assert math.isnan(rows["rise"][0])
    assert found.differences == ["The run has 2 images, VOC07 test has 4952."]
    assert "| grad_cam | 50.0 | 90.4 | – | 82.3 |" in markdown_report(analysis)
    assert compare_published(make(tmp_path / "scenes", game([1.0]))) == []


def test_names_cannot_break_the_markdown(tmp_path):
    rows = [row._replace(error="a | b\n# c <img src=x>") for row in game([None], "x|*y*")]
    text = markdown_report(make(tmp_path, rows))
    assert "a \\| b # c &lt;img src=x>" in text
    assert "x\\|\\*y\\*" in text
