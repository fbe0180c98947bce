"""The pointing game on the embedded scenes, with the embedded network's real weights."""

import pytest
import torch

from benchmarks.pointing_game import CENTRE, LONG, cases_of, hits_of, main
from saliency import METHODS
from saliency.scenes import make_scenes, scene_network

SCENES = 60
# Percentage points above the centre point. Activation shows every object, whatever the class that is asked for.
MARGINS = dict.fromkeys(METHODS, 40) | {"activation": 10}
del MARGINS["deconvnet"]  # see below
FEW = {"rise": {"num_masks": 300}, "extremal_perturbation": {"areas": 0.05, "max_iter": 60}}  # and fewer scenes


@pytest.fixture(scope="module")
def accuracy():
    model, batches = scene_network(), list(cases_of(make_scenes(SCENES, seed=500)))
    return {
        name: 100 * torch.cat([hits_of(name, model, cases, 15) for cases in batches]).float().mean().item()
        for name in (CENTRE, *MARGINS)
        if name not in LONG
    }


@pytest.mark.parametrize("method", [name for name in MARGINS if name not in LONG])
def test_a_method_finds_objects_better_than_the_centre_point(accuracy, method):
    assert accuracy[method] >= accuracy[CENTRE] + MARGINS[method]


@pytest.mark.parametrize("method", LONG)
def test_a_long_method_finds_objects_better_than_the_centre_point(method):
    model, batches = scene_network(), list(cases_of(make_scenes(8, seed=500)))
    found, centre = (
        torch.cat([hits_of(name, model, cases, 15, **FEW.get(name, {})) for cases in batches]).float().mean().item()
        for name in (method, CENTRE)
    )
    assert 100 * found >= 100 * centre + MARGINS[method]


def test_deconvnet_cannot_find_anything_in_a_network_without_max_pooling():
    """Its rule looks at no activation, so nothing in its map comes from the image: it is the same for every image."""
    model, images = scene_network(), torch.stack([scene.image for scene in make_scenes(3)])
    maps = METHODS["deconvnet"].function(model, images, 5)
    assert maps[0].abs().max() > 0
    torch.testing.assert_close(maps, maps[:1].expand_as(maps))


def test_a_case_is_an_image_and_a_class_in_it():
    scenes = make_scenes(12)
    found = [
        (int(label), mask)
        for _, labels, masks in cases_of(scenes)
        for label, mask in zip(labels.flatten(), masks.flatten(0, 1), strict=True)
    ]
    expected = [
        (label, scene.class_mask(label)) for scene in scenes for label in {item.label for item in scene.objects}
    ]
    assert len(found) == len(expected)
    assert all(any(label == other and torch.equal(mask, its) for other, its in expected) for label, mask in found)


def test_the_table_is_printed_and_a_wrong_option_is_refused(capsys):
    assert main(["--scenes", "3", "--method", "grad_cam"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(lines) == 4
    for wrong in (["--scenes", "0"], ["--option", "num_masks=3"]):
        with pytest.raises(SystemExit) as refused:
            main(wrong)
        assert refused.value.code == 2
