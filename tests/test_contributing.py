"""What CONTRIBUTING.md shows runs as it stands there, and gives the maps of the package."""

import importlib
import re
from pathlib import Path

import pytest
import torch

import saliency
from saliency.scenes import make_scene, scene_network

TEXT = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
# The sections on methods, each with what it shows and the options of the call.
SHOWN = {
    "Add a CAM": ("layer_cam", {"saliency_layer": "layer3"}),
    "Add a rule": ("guided_backprop", {}),
    "Add a path method": ("smooth_gradient", {"n_samples": 3, "stdevs": 0.1}),
    "Add a perturbation method": ("score_cam", {"saliency_layer": "layer4"}),
}


def section(title):
    """The text under a heading, up to the next one."""
    return re.split(r"^##+ ", TEXT.split(f"\n### {title}\n")[1], maxsplit=1, flags=re.MULTILINE)[0]


def blocks(title):
    """Each code block of a section, with the module that the sentence in front of it says to write it in."""
    parts = re.split(r"^```(?:python)?\n", section(title), flags=re.MULTILINE)
    for text, code in zip(parts[::2], parts[1::2], strict=False):
        yield re.findall(r"`(saliency/[\w/]+)\.py`", text)[-1].replace("/", "."), code


def test_every_section_on_methods_is_run():
    assert re.findall(r"^### (.+)$", TEXT, flags=re.MULTILINE) == list(SHOWN)


@pytest.mark.parametrize("title", SHOWN)
def test_a_method_is_complete_in_fifteen_lines(title):
    assert 0 < sum(len(code.rstrip().splitlines()) for _, code in blocks(title)) <= 15


@pytest.mark.parametrize("title", SHOWN)
def test_the_code_runs_and_gives_the_maps_of_the_package(title, monkeypatch):
    """Each block is run where it belongs: what it needs is imported in its file, or stands in a block before it.

    What a block defines is in its file, and in the package around that, for the blocks behind it.
    """
    name, options = SHOWN[title]
    image, target = make_scene(1).image[None], make_scene(1).objects[0].label
    expected = saliency.METHODS[name].function(scene_network(), image, target, **options)
    for module, code in blocks(title):
        place, package = map(importlib.import_module, (module, module.rpartition(".")[0]))
        written = dict(vars(place))
        before = set(map(id, written.values()))
        exec(compile(code, f"CONTRIBUTING.md: {title}", "exec"), written)
        for key, value in written.items():
            if id(value) not in before and key != "__builtins__":
                monkeypatch.setattr(place, key, value)
                monkeypatch.setattr(package, key, value, raising=False)
    assert written[name] is not saliency.METHODS[name].function
    found = written[name](scene_network(), image, target, **options)
    assert found.abs().max() > 0
    assert torch.equal(found, expected)
