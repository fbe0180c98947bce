"""The documentation: its code runs, its commands exist, its chapters hold everything; in a browser it is whole."""

import doctest
import re
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

import saliency
from docs.making import blocks, families, gallery, overview, reference
from saliency.cli import build_parser
from tests.evaluation.report.test_page import browser  # noqa: F401

ROOT = Path(__file__).parent.parent
SITE = ROOT / "docs" / "_build" / "html"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CODE = ("python", "{picture}")
OTHER = ("sh", "text", "{toctree}", "{include}")


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_the_code_of_a_page_runs(path):
    blocks.run(path)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_page_has_blocks_that_are_run_or_say_why_not(path):
    text = path.read_text(encoding="utf-8")
    found = list(blocks.blocks(text))
    assert 2 * len(found) == len(re.findall(r"^```", text, re.MULTILINE))
    assert {block.kind for block in found} <= {*CODE, *OTHER}
    assert all(block.is_run or block.kind in CODE for block in found)
    assert all(len(note) > len("not run: ") for note in re.findall(rf"<!-- ({blocks.NOT_RUN}.*?) -->", text))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_the_commands_of_a_page_exist(path):
    makes = re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    commands = build_parser()._subparsers._group_actions[0].choices
    for block in blocks.blocks(path.read_text(encoding="utf-8")):
        if block.kind == "sh":
            assert set(re.findall(r"^make ([\w-]+)", block.code, re.MULTILINE)) <= set(makes)
            assert set(re.findall(r"^saliency (\w+)", block.code, re.MULTILINE)) <= set(commands)
            for module in re.findall(r"-m benchmarks\.(\w+)", block.code):
                assert (ROOT / "benchmarks" / f"{module}.py").is_file()


@pytest.mark.parametrize("module", [blocks, families, gallery, overview], ids=lambda module: module.__name__)
def test_what_makes_the_site_does_what_it_says(module):
    found = doctest.testmod(module)
    assert found.attempted > 0
    assert found.failed == 0


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 130


def test_every_method_has_one_chapter():
    chapters = Counter(name for family in families.FAMILIES.values() for name in family.methods)
    assert chapters == Counter(list(saliency.METHODS))


def test_every_public_name_has_one_entry_in_the_reference():
    entries = Counter(name.rpartition(".")[2] for name in reference.names())
    assert {name: entries[name] for name in saliency.__all__ if entries[name] != 1} == {}


def test_the_first_picture_shows_every_method():
    """Else it has to be drawn anew: ``python -m docs.making.overview``."""
    with Image.open(overview.PATH) as picture:
        assert picture.info["comment"].decode() == " ".join(overview.names())
    assert set(saliency.METHODS) - set(overview.names()) == {"feature_permutation"}
    assert overview.PATH.stat().st_size < 400_000


def test_every_example_has_a_chapter():
    for path in (ROOT / "examples").glob("*.py"):
        assert families.family_of(path.stem.removesuffix("_manual")) in families.FAMILIES


@pytest.mark.browser
@pytest.mark.skipif(not (SITE / "index.html").is_file(), reason="needs the documentation: make docs")
@pytest.mark.parametrize("width", [1400, 390])
@pytest.mark.parametrize("page", ["index", "start", "wrong", "migrating", "api/cams", "gallery/index"])
def test_a_page_is_whole_in_a_browser(page, width, browser):  # noqa: F811
    """No errors, no picture that is missing, nothing from elsewhere, nothing wider than the screen."""
    browser.get_log("browser")
    size = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get((SITE / f"{page}.html").as_uri())
    assert browser.get_log("browser") == []
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    broken = "return [...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)"
    assert browser.execute_script(broken) == []
    loaded = browser.execute_script("return performance.getEntriesByType('resource').map(r => r.name)")
    assert all(name.startswith("file:") for name in loaded)
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
