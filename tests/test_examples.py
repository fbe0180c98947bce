"""Every example runs, and the one call gives what the same method gives by hand."""

import runpy
from pathlib import Path

import pytest
import torch

from saliency import METHODS

EXAMPLES = Path(__file__).parent.parent / "examples"
ONE_CALL = sorted(path.stem for path in EXAMPLES.glob("*.py") if not path.stem.endswith("_manual"))


def test_every_method_has_its_pair():
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert set(METHODS) <= set(ONE_CALL)
    assert names == {name + end for name in ONE_CALL for end in ("", "_manual")}


@pytest.mark.parametrize("name", ONE_CALL)
def test_one_call_equals_the_method_by_hand(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    maps = [runpy.run_path(str(EXAMPLES / f"{stem}.py"))["saliency"] for stem in (name, f"{name}_manual")]
    assert maps[0].shape == (1, 1, 128, 128)
    assert maps[0].abs().max() > 0
    torch.testing.assert_close(maps[0], maps[1].detach(), rtol=1e-5, atol=1e-6 * float(maps[0].abs().max()))
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{name}.png", f"{name}_manual.png"]


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_is_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 20


TASKS = sorted((EXAMPLES / "tasks").glob("*.py"))


@pytest.mark.parametrize("path", TASKS, ids=lambda path: path.stem)
def test_a_task_is_done_in_less_than_thirty_lines(path, tmp_path, monkeypatch, capsys):
    """And shows a picture, or a table."""
    monkeypatch.chdir(tmp_path)
    assert len(path.read_text(encoding="utf-8").splitlines()) < 30
    runpy.run_path(str(path))
    assert (tmp_path / f"{path.stem}.png").is_file() or "| mine |" in capsys.readouterr().out
