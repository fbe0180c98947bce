"""What a user mistypes on each command: one line on stderr with the nearest name, exit code 2, and no file."""

import sys

import pytest

from saliency.cli import main
from saliency.evaluation.running.store import Result
from tests.evaluation.report.made_run import make_config, write_run

MISTAKES = {
    "no command": ([], "the following arguments are required: COMMAND"),
    "command": (["benchmrak"], "command='benchmrak' is unknown; did you mean 'benchmark'?"),
    "option of explain": (["explain", "--metod", "gradient"], "did you mean --method?"),
    "option of benchmark": (["benchmark", "--metrik", "insertion"], "did you mean --metric?"),
    "option of report": (["report", "run", "--methd", "cam"], "did you mean --method?"),
    "method": (["benchmark", "--method", "centr"], "method='centr' is unknown; did you mean 'centre'?"),
    "group of methods": (["benchmark", "--method", "torchry"], "did you mean 'torchray'?"),
    "metric": (["benchmark", "--metric", "insertoin"], "metric='insertoin' is unknown; did you mean 'insertion'?"),
    "data set": (["benchmark", "--dataset", "voc2012"], "dataset='voc2012' is unknown; did you mean 'voc2007'?"),
    "arch": (["benchmark", "--arch", "scenes_vt"], "arch='scenes_vt' is unknown; did you mean 'scenes_vit'?"),
    "choice": (["benchmark", "--on-error", "refse"], "on_error='refse' is unknown; did you mean 'refuse'?"),
    "number": (["benchmark", "--limit", "few"], "'few' is not a whole number of at least 1"),
    "option's name": (["benchmark", "--method", "rise", "--option", "num_mask=9"], "(did you mean 'num_masks'?)"),
    "option's value": (["benchmark", "--method", "rise", "--option", "num_masks=0"], "num_masks=0 is not a positive"),
    "option's type": (["benchmark", "--method", "lrp", "--option", "rules=epsilon_pluss"], "rules='epsilon_pluss'"),
    "option of a method": (
        ["benchmark", "--method", "rise", "--method", "gradient", "--option", "ris.num_masks=9"],
        "option='ris' is not a method of this run (did you mean 'rise'?)",
    ),
    "version of a method": (
        ["benchmark", "--method", "gradient", "--method-version", "gradiet=2"],
        "method_version='gradiet' is not a method of this run (did you mean 'gradient'?)",
    ),
    "metric option's name": (
        ["benchmark", "--metric", "insertion", "--metric-option", "insertion.step=3"],
        "metric_option='step' is not an option of insertion (did you mean 'steps'?)",
    ),
    "metric option's value": (
        ["benchmark", "--metric", "deletion", "--metric-option", "deletion.steps=none"],
        "steps='none' is not",
    ),
    "wrapper's option": (["benchmark", "--method", "low_pass(gradient)"], "option='cutoff' of low_pass is missing"),
    "module": (["benchmark", "--import", "my_metrics"], "import='my_metrics' cannot be imported"),
    "no module": (["explain", "--import", "my metrics"], "import='my metrics' is not a module's name"),
    "root": (["benchmark", "--dataset", "voc2007", "--root", "nowhere"], "root='nowhere' is not a folder"),
    "folder that cannot be made": (["benchmark", "--limit", "1", "--out", "file/out"], "out='file/out' cannot be used"),
    "no results": (["report", "rnu"], "folder='rnu' is not a folder (did you mean 'run'?)"),
    "folder without results": (["report", "empty"], "folder='empty' holds no rows"),
    "row of the report": (["report", "run", "--method", "can"], "method='can' is unknown; did you mean 'cam'?"),
    "report that cannot be written": (["report", "run", "--out", "file/out"], "out='file/out' cannot be written to"),
    "network to list": (["layers", "--arch", "resnt18"], "did you mean 'resnet18'?"),
    "rules of a network": (["methods", "--model", "scene"], "did you mean 'scenes'?"),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [Result(f"photo{number}", 0, "cam", "pointing_game", 1.0, 0.1, None, "a") for number in range(3)]
    write_run(tmp_path / "run", rows, {"a": make_config("pointing_game", "cam")})
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    return tmp_path


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line_with_the_nearest_name(folder, capsys, case):
    arguments, message = MISTAKES[case]
    before = sorted(folder.rglob("*"))
    few = ["--scenes", "1"] if arguments[:1] == ["benchmark"] and "--dataset" not in arguments else []
    assert main([*arguments, *few]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("saliency: error: ")
    assert said.err.count("\n") == 1
    assert message in said.err
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("dataset", "package"), [("voc2007", "defusedxml"), ("coco2017", "pycocotools"), ("folder", "pycocotools")]
)
def test_a_package_that_is_missing_is_named_with_the_extra_that_installs_it(
    folder, capsys, monkeypatch, dataset, package
):
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["benchmark", "--dataset", dataset, "--root", "."]) == 2
    expected = f"saliency: error: {package} is missing; install the extra 'benchmark' of saliency-torch.\n"
    assert capsys.readouterr().err == expected


def test_without_a_progress_bar_the_benchmark_runs(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert main(["benchmark", "--scenes", "1", "--method", "centre", "--out", "out"]) == 0
    assert capsys.readouterr().err == ""


def test_the_report_shows_the_methods_that_are_asked_for(folder, capsys):
    for name in ("gradient", "centre"):
        arguments = ["--scenes", "1", "--gallery", "0", "--method", name, "--out", "game"]
        assert main(["benchmark", *arguments]) == 0
    capsys.readouterr()
    assert main(["report", "game", "--method", "centre", "--out", "shown"]) == 0
    assert [line.rpartition("/")[2] for line in capsys.readouterr().out.split()] == [
        *("cases.csv", "summary.csv", "report.md", "report.html")
    ]
    text = (folder / "shown" / "report.md").read_text()
    assert "centre" in text
    assert "| gradient |" not in text
