"""The page of measurements is written between its marks, by what measures; how fast anything is, is not tested."""

import re
from functools import partial
from importlib.metadata import version

import pytest
import torch

from benchmarks import measured, throughput
from benchmarks.agreement import NOTES, Agreement
from benchmarks.comparisons import GRAD_CAM_COMPARISONS
from benchmarks.throughput import Round

QUICK = ["--rounds", "1", "--batch", "1", "--image", "32", "--scenes", "2", "--images", "1", "--network", "resnet18"]


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def page(tmp_path):
    path = tmp_path / "measured.md"
    path.write_text("before\n<!-- measured: cpu -->\nold\n<!-- end: cpu -->\nafter\n", "utf-8")
    return path


def test_a_quick_run_writes_every_table_of_its_device_and_nothing_else(page, monkeypatch):
    speed = partial(measured.speed_table, shown=GRAD_CAM_COMPARISONS[1:2])
    monkeypatch.setitem(measured.PARTS, "Speed", speed)
    monkeypatch.setattr(measured, "RUNS", (("ResNet", "scenes", ()),))
    monkeypatch.setattr(throughput, "measure", lambda arguments: [Round(2.0, 6.0, {}), Round(1.0, 4.0, {})])
    found = Agreement("Captum", "0.9", dict(zip(NOTES, (40, 0, 2, 3), strict=True)), {"": 2e-6, "scaled": 0.0})
    monkeypatch.setattr(measured.agreement, "measure", lambda: [found])
    assert measured.main([*QUICK, "--method", "centre", "--method", "grad_cam", "--page", str(page)]) == 0
    text = page.read_text("utf-8")
    assert text.startswith("before\n<!-- measured: cpu -->\n\n20")
    assert text.endswith("\n\n<!-- end: cpu -->\nafter\n")
    assert "old" not in text
    assert f"torch {version('torch')}" in text
    assert re.search(r"^\| Grad-CAM with no layer named / forward pass \| saliency \| [\d.]+ \(", text, re.MULTILINE)
    assert "| 0.8 | 0.2 | 3.5 (3.0–4.0) |" in text  # images per second: medians of 1/2 and 1, and of 1/6 and 1/4
    assert "| Captum 0.9 | 40 | 0 | 2 | 3 | 2e-06 |  |" in text
    assert re.search(r"^\| `grad_cam` \| [\d.]+ \|$", text, re.MULTILINE)


def test_a_library_that_is_missing_is_said(monkeypatch):
    def missing(arguments):
        raise ModuleNotFoundError("No module named 'torchray'", name="torchray")

    monkeypatch.setattr(throughput, "measure", missing)
    assert measured.throughput_table(measured.parse([])) == "Not measured: torchray is not installed."


def test_a_page_without_marks_is_refused_before_anything_is_measured(page, monkeypatch):
    page.write_text("no marks", "utf-8")
    monkeypatch.setattr(measured, "machine", None)
    with pytest.raises(ValueError, match="has no part for cpu; expected <!-- measured: cpu -->"):
        measured.main(["--page", str(page)])


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_page_has_a_part_for_each_device(device):
    text = measured.PAGE.read_text("utf-8")
    assert "new" in measured.replace(text, device, "new")


def test_what_it_shows_are_comparisons_with_names_of_their_own():
    names = [comparison.name for comparison in measured.SHOWN]
    assert len(set(names)) == len(names) > 10
