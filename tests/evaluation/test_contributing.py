"""What CONTRIBUTING.md shows of metrics, data sets and baselines runs as it stands there."""

import importlib
import json
import re
from pathlib import Path

import pytest
import torch

from benchmarks.pointing_game import main
from saliency.evaluation.baselines import BASELINES
from saliency.evaluation.datasets import DATASETS
from saliency.evaluation.metrics import METRICS
from saliency.evaluation.running.store import read_results
from tests.evaluation.trees import write_photo

TEXT = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
TABLES = {"metric": METRICS, "data set": DATASETS, "baseline": BASELINES}
# Where a block that is a file of its own is run, beside what it would import.
NEW_FILE = {"saliency/evaluation/datasets/": "saliency.evaluation.datasets.voc"}


def blocks(kind):
    """Each code block of a section, with the module that the text in front of it says to write it in."""
    section = re.split(r"^## ", TEXT.split(f"\n## Add a {kind}\n")[1], maxsplit=1, flags=re.MULTILINE)[0]
    parts = re.split(r"^```(?:python)?\n", section, flags=re.MULTILINE)
    for text, code in zip(parts[::2], parts[1::2], strict=False):
        place = re.findall(r"`(saliency/[\w/]+(?:\.py|/))`", text)[-1]
        module = NEW_FILE.get(place, place.removesuffix(".py").replace("/", ".").removesuffix(".__init__"))
        yield importlib.import_module(module), code


@pytest.mark.parametrize("kind", TABLES)
def test_it_is_complete_in_fifteen_lines(kind):
    assert 0 < sum(len(code.rstrip().splitlines()) for _, code in blocks(kind)) <= 15


@pytest.fixture
def added(monkeypatch):
    """Run the blocks of a section where they belong; the rows of the table that they add or replace."""

    def add(kind):
        table, before, made = TABLES[kind], dict(TABLES[kind]), {}
        for name in before:
            monkeypatch.setitem(table, name, before[name])  # put back, whatever the blocks do
        for module, code in blocks(kind):
            written = vars(module) | made
            known = set(map(id, written.values()))
            exec(compile(code, f"CONTRIBUTING.md: {kind}", "exec"), written)
            made |= {name: value for name, value in written.items() if id(value) not in known}
        new = [name for name, row in table.items() if before.get(name) is not row]
        for name in set(new) - before.keys():
            monkeypatch.setitem(table, name, table.pop(name))
        return new

    return add


def play(capsys, out, *arguments):
    code = main(["--device", "cpu", "--gallery", "0", "--out", str(out), *arguments])
    said = capsys.readouterr()
    assert code == 0, said
    return {(row.image, row.target, row.method): row.score for row in read_results(out)}


def test_a_metric(added, capsys, tmp_path):
    arguments = ("--scenes", "3", "--method", "grad_cam", "--method", "centre", "--metric", "energy_pointing_game")
    expected = play(capsys, tmp_path / "package", *arguments)
    assert added("metric") == ["energy_pointing_game"]
    assert play(capsys, tmp_path / "shown", *arguments) == pytest.approx(expected, abs=1e-6)


def test_a_data_set(added, capsys, tmp_path):
    assert added("data set") == ["csv"]
    for name in ("a.jpg", "b.jpg"):
        write_photo(tmp_path / "test" / name)
    lines = ["a.jpg,cat,18,13,24,18", "a.jpg,dog,0,0,3,4", "b.jpg,dog,0,0,40,30", "b.jpg,dog,x,0,40,30"]
    (tmp_path / "test.csv").write_text("\n".join(lines[:3]))
    (tmp_path / "map.json").write_text(json.dumps({"cat": [0], "dog": [1]}))
    network = ["--arch", "scenes", "--class-map", str(tmp_path / "map.json"), "--method", "centre", "--tolerance", "1"]
    data = ["--dataset", "csv", "--root", str(tmp_path)]
    # The photos are 40 pixels wide and 30 high: the centre is the pixel (20, 15).
    expected = {("a.jpg", 0, "centre"): 1, ("a.jpg", 1, "centre"): 0, ("b.jpg", 1, "centre"): 1}
    assert play(capsys, tmp_path / "out", *data, *network) == expected
    (tmp_path / "test.csv").write_text("\n".join(lines))
    assert main([*data, *network, "--out", str(tmp_path / "refused"), "--on-error", "refuse"]) == 2
    assert "b.jpg: it cannot be read (ValueError: could not convert string to float: 'x')" in capsys.readouterr().err


def test_a_baseline(added, capsys, tmp_path):
    assert added("baseline") == ["brightness"]
    found = play(capsys, tmp_path / "out", "--scenes", "2", "--method", "brightness", "--method", "centre")
    assert {method for *_, method in found} == {"brightness", "centre"}
    image = torch.rand(2, 3, 4, 5)
    maps = BASELINES["brightness"].function(None, image, torch.zeros(2, 2, dtype=torch.long))
    torch.testing.assert_close(maps, image.mean(1, keepdim=True).expand(2, 2, 4, 5))
