"""Files as users have them: broken, hostile, huge, of another tool."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from saliency import imsmooth, random_masks, smooth_grad
from saliency.cli import main
from saliency.evaluation.cases import class_mask, left_out, read_class_map
from saliency.evaluation.datasets import load_dataset
from saliency.images import MOST_PIXELS, read_image
from saliency.networks.models import load_network, read_state_dict
from saliency.scenes import scene_network

TRIANGLE = [[1, 1, 8, 1, 8, 8]]


def noise(width, height):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def coco(root, image=None, annotation=None):
    """A folder with two photos of 20 x 10 pixels, the first as the test has it."""
    for name in ("a", "b"):
        noise(20, 10).save(root / f"{name}.png")
    content = {
        "categories": [{"id": 1, "name": "thing"}],
        "images": [
            {"id": 1, "file_name": "a.png", "width": 20, "height": 10, **(image or {})},
            {"id": 2, "file_name": "b.png", "width": 20, "height": 10},
        ],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 7, 7], **(annotation or {})},
            {"id": 2, "image_id": 2, "category_id": 1, "bbox": [1, 1, 7, 7], "segmentation": TRIANGLE},
        ],
    }
    (root / "annotations.json").write_text(json.dumps(content))
    return load_dataset("folder", root)


IMAGES = {
    "a photo outside of the root": ({"file_name": "../outside.png"}, "is outside of"),
    "one a step farther": ({"file_name": "sub/../../outside.png"}, "is outside of"),
    "an absolute path": ({"file_name": "/etc/hostname"}, "is outside of"),
    "a size that is not the file's": ({"width": 10**12, "height": 10**12}, "is not of the annotated height and width"),
    "a wide one": ({"width": 10**9}, "is not of the annotated height and width"),
    "a size of hundreds of digits": ({"width": 10**400, "height": 10**400}, "is not of the annotated height and width"),
    "a name of 5,000 characters": ({"file_name": "x" * 5000 + ".png"}, "File name too long"),
    "a name with NUL": ({"file_name": "a\0.png"}, "does not exist"),
    "a name that no text can hold": ({"file_name": "\ud800.png"}, "does not exist"),
    "a name that clears the screen": ({"file_name": "\x1b[2J\x1b[1;1H.png"}, "does not exist"),
}


@pytest.mark.parametrize("case", IMAGES)
def test_a_hostile_photo_is_one_problem(tmp_path, case):
    noise(20, 10).save(tmp_path / "outside.png")
    root = tmp_path / "root"
    root.mkdir()
    image, message = IMAGES[case]
    found = coco(root, image)
    assert [annotation.name for annotation in found.annotations] == ["b.png"]
    (problem,) = found.problems
    assert message in problem
    assert problem.isprintable()
    assert len(problem) <= 700
    assert class_mask(found.annotations[0], 0).sum() > 0
    assert left_out(found, [(0,)]) == [problem]


ANNOTATIONS = {
    "a polygon of hundreds of digits": ({"segmentation": [[10**400, 1, 8, 1, 8, 8]]}, "polygon far outside"),
    "a polygon of 1e308": ({"segmentation": [[1e308, 1e308, 8, 1, 8, 8]]}, "polygon far outside"),
    "a polygon of texts": ({"segmentation": [["1", 1, 8, 1, 8, 8]]}, "other things than numbers"),
    "runs of hundreds of digits": ({"segmentation": {"size": [10, 20], "counts": [10**400, 3]}}, "does not fill"),
    "an endless run": ({"segmentation": {"size": [10, 20], "counts": "o" * 10**6}}, "broken run-length code"),
    "runs of no text": ({"segmentation": {"size": [10, 20], "counts": None}}, "broken run-length code"),
    "a box of hundreds of digits": ({"bbox": [1, 1, 10**400, 0.5]}, "not x, y, width, height"),
    "a box of texts": ({"bbox": ["1", "1", "2", "2"]}, "not x, y, width, height"),
    "a box of NaN": ({"bbox": [1, 1, float("nan"), 2]}, "without area"),
}


@pytest.mark.parametrize("case", ANNOTATIONS)
def test_a_hostile_object_is_one_problem(tmp_path, case):
    annotation, message = ANNOTATIONS[case]
    found = coco(tmp_path, annotation=annotation)
    assert [len(annotation.instances) for annotation in found.annotations] == [0, 1]
    (problem,) = found.problems
    assert message in problem
    assert len(problem) <= 400


@pytest.mark.parametrize("content", ["[" * 10**5, '{"images":' * 10**5, "{", "\0", '{"images": 3}', "null"])
def test_json_that_is_no_annotation_is_refused_in_one_line(tmp_path, content):
    noise(20, 10).save(tmp_path / "a.png")
    (tmp_path / "annotations.json").write_text(content)
    with pytest.raises(ValueError, match=r"^annotations='.*annotations\.json' cannot be read"):
        load_dataset("folder", tmp_path)
    with pytest.raises(ValueError, match="class_map="):
        read_class_map(tmp_path / "annotations.json")


XML = "<annotation>{}<object><name>cat</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
BROKEN_XML = {
    "an unknown encoding": ('<?xml version="1.0" encoding="klingon"?><annotation/>', "cannot be read"),
    "an encoding of two bytes": ('<?xml version="1.0" encoding="shift_jis"?><annotation/>', "cannot be read"),
    "entities": ('<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>', "cannot be read"),
    "a size beyond all photos": (
        XML.format("<size><height>1e300</height><width>1e300</width></size>") + "</object></annotation>",
        "is not of the annotated height and width",
    ),
}


def voc(root, listed, xml):
    base = root / "VOCdevkit/VOC2007"
    for folder in ("ImageSets/Main", "JPEGImages", "Annotations"):
        (base / folder).mkdir(parents=True)
    for name, text in (("000001", xml), ("000002", XML.format("") + "</object></annotation>")):
        noise(20, 10).save(base / f"JPEGImages/{name}.jpg")
        (base / f"Annotations/{name}.xml").write_text(text)
    (base / "ImageSets/Main/test.txt").write_text("\n".join(listed) + "\n")
    return load_dataset("voc2007", root)


@pytest.mark.parametrize("case", BROKEN_XML)
def test_a_hostile_xml_file_is_one_problem(tmp_path, case):
    xml, message = BROKEN_XML[case]
    found = voc(tmp_path, ["000001", "000002"], xml)
    assert [annotation.name for annotation in found.annotations] == ["000002"]
    (problem,) = found.problems
    assert message in problem


@pytest.mark.parametrize("name", ["00\x000001", "y" * 5000, "../../../../../etc/hostname"])
def test_a_hostile_name_in_a_list_is_one_problem(tmp_path, name):
    found = voc(tmp_path, [name, "000002"], "")
    assert [annotation.name for annotation in found.annotations] == ["000002"]
    assert len(found.problems) == 1


# Until Python 3.11, csv refuses a whole file with a NUL in it, which is said in one line.
NUL = pytest.param(["n\0", "b"], marks=pytest.mark.skipif(sys.version_info < (3, 11), reason="csv refuses the file"))


@pytest.mark.parametrize("names", [NUL, ["z" * 5000, "b"], ["../../x", "b"]])
def test_a_hostile_name_among_imagenet_s_is_one_problem(tmp_path, names):
    photos = tmp_path / "ILSVRC/Data/CLS-LOC/val"
    photos.mkdir(parents=True)
    noise(20, 10).save(photos / "b.JPEG", "JPEG")
    (tmp_path / "LOC_synset_mapping.txt").write_text("n01 cat\n")
    rows = ["ImageId,PredictionString", *(f"{name},n01 1 1 9 9 " for name in names)]
    (tmp_path / "LOC_val_solution.csv").write_text("\n".join(rows) + "\n")
    found = load_dataset("imagenet", tmp_path)
    assert [annotation.name for annotation in found.annotations] == ["b"]
    assert len(found.problems) == 1


@pytest.mark.parametrize("content", [b"\xff\xfe", b'a,b\n"' + b"x" * 200_000 + b'"\n'])
def test_a_broken_list_of_imagenet_is_refused_in_one_line(tmp_path, content):
    (tmp_path / "LOC_synset_mapping.txt").write_text("n01 cat\n")
    (tmp_path / "LOC_val_solution.csv").write_bytes(content)
    with pytest.raises(ValueError, match=r"root.*LOC_val_solution"):
        load_dataset("imagenet", tmp_path)


@pytest.mark.parametrize("size", [(1, 20_000), (20_000, 1), (3, 4_000)])
def test_a_strip_of_a_photo_has_maps_and_a_sheet(tmp_path, size, capsys):
    noise(*size).save(tmp_path / "strip.png")
    command = ["explain", str(tmp_path / "strip.png"), "--arch", "scenes", "--save", "maps"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().err == ""
    assert (tmp_path / "out/strip.png").is_file()
    assert len(list((tmp_path / "out").glob("*.npy"))) == 1


MODES = [("png", mode) for mode in ("RGB", "L", "LA", "RGBA", "P", "1", "I;16")]
MODES += [("jpg", mode) for mode in ("RGB", "L", "CMYK")] + [
    ("tif", mode) for mode in ("RGB", "1", "CMYK", "I;16", "F")
]


@pytest.mark.parametrize(("suffix", "mode"), MODES)
def test_a_large_photo_is_read_reduced(tmp_path, monkeypatch, mode, suffix):
    """Halves of grey and of white, in any mode: reduced, they are where they were."""
    monkeypatch.setattr("saliency.images.MOST_PIXELS", 2000)
    picture = Image.new("RGB", (250, 100), (120, 120, 120))
    picture.paste((255, 255, 255), (125, 0, 250, 100))
    picture = picture.convert("L").convert("I").convert(mode) if mode == "I;16" else picture.convert(mode)
    if mode == "F":
        picture = picture.point(lambda value: value * (1 / 255) + 0)
    picture.save(tmp_path / f"a.{suffix}")
    found = read_image(tmp_path / f"a.{suffix}")
    assert found.shape[1] * found.shape[2] <= 2000
    assert found.shape[2] / found.shape[1] == pytest.approx(2.5, rel=0.1)
    left, right = found[..., : found.shape[2] // 2 - 2], found[..., found.shape[2] // 2 + 2 :]
    scale = 1 / 257 if mode == "I;16" else 1
    assert left.mean().item() == pytest.approx(120 / 255 * scale, abs=0.02)
    assert right.mean().item() == pytest.approx(scale, abs=0.02)


def test_a_photo_read_reduced_is_turned_upright(tmp_path, monkeypatch):
    monkeypatch.setattr("saliency.images.MOST_PIXELS", 2000)
    for suffix in ("jpg", "png"):
        picture = Image.new("L", (200, 100))
        picture.paste(255, (0, 0, 100, 100))  # the left half, at the top where orientation is 6
        exif = Image.Exif()
        exif[0x0112] = 6
        picture.save(tmp_path / f"a.{suffix}", exif=exif)
        found = read_image(tmp_path / f"a.{suffix}")
        assert found.shape[1] > found.shape[2]
        assert found[:, :10].mean() > 0.9
        assert found[:, -10:].mean() < 0.1


MEMORY = """
import resource, sys, warnings
warnings.simplefilter("ignore")
from saliency.images import read_image
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
sizes = [read_image(path)[0].numel() for path in sys.argv[1:]]
print(max(sizes), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_a_photo_of_36_megapixels_fits_in_memory(tmp_path):
    """As numbers of 32 bits its pixels alone are 432 MB."""
    paths = [str(tmp_path / f"a.{suffix}") for suffix in ("jpg", "png")]
    for path in paths:
        Image.new("RGB", (6_000, 6_000), (200, 100, 50)).save(path)
    command = [sys.executable, "-c", MEMORY, *paths]
    pixels, megabytes = map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert pixels <= MOST_PIXELS
    assert megabytes < 350


def test_a_photo_that_is_not_large_keeps_every_pixel(tmp_path):
    noise(300, 200).save(tmp_path / "a.png")
    expected = np.asarray(noise(300, 200), np.float32) / np.float32(255)
    assert torch.equal(read_image(tmp_path / "a.png"), torch.from_numpy(expected).permute(2, 0, 1))


CHECKPOINTS = {
    "bare": lambda state: state,
    "compiled": lambda state: {f"_orig_mod.{name}": value for name, value in state.items()},
    "compiled parts": lambda state: {name.replace("layer1.", "layer1._orig_mod."): v for name, v in state.items()},
    "compiled in parallel": lambda state: {f"module._orig_mod.{name}": value for name, value in state.items()},
    "parallel, compiled": lambda state: {f"_orig_mod.module.{name}": value for name, value in state.items()},
    "a trainer's": lambda state: {"model": state, "epoch": 3, "optimizer": {}},
    "another trainer's": lambda state: {"model_state_dict": state, "loss": 0.5},
    "nested": lambda state: {"state_dict": {f"module.{name}": value for name, value in state.items()}},
}


@pytest.mark.parametrize("form", CHECKPOINTS)
def test_a_checkpoint_of_any_form_is_read(tmp_path, form):
    state = scene_network().state_dict()
    torch.save(CHECKPOINTS[form](state), tmp_path / "a.pt")
    loaded = load_network("scenes", tmp_path / "a.pt").state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in state.items())


@pytest.mark.parametrize("key", [3, ("fc", "weight"), None, True])
def test_a_state_dict_with_a_key_that_is_no_text_is_refused(tmp_path, key):
    torch.save({key: torch.zeros(1)}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"^weights='.*a\.pt' (has a key that is not a text|cannot be read)"):
        read_state_dict(tmp_path / "a.pt")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_give_nan_end_the_command(tmp_path, capsys, value):
    state = scene_network().state_dict()
    state["fc.weight"][0, 0] = value
    torch.save(state, tmp_path / "a.pt")
    arguments = ["--arch", "scenes", "--scenes", "1", "--weights", str(tmp_path / "a.pt"), "--out", str(tmp_path / "o")]
    assert main(["explain", *arguments]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == (
        "saliency: error: weights give NaN or infinite scores for photo='scene0'; expected finite numbers.\n"
    )
    assert not list(tmp_path.glob("o/*"))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_map_of_nan_is_not_written(tmp_path, capsys, monkeypatch, bad):
    from saliency.methods import METHODS

    method = METHODS["gradient"]
    broken = method._replace(function=lambda *args, **options: method.function(*args, **options) * bad)
    monkeypatch.setitem(METHODS, "gradient", broken)
    command = ["explain", "--scenes", "1", "--out", str(tmp_path), "--save", "maps", "--method", "gradient"]
    assert main(command) == 2
    assert "method='gradient' gave a map that holds NaN or infinity" in capsys.readouterr().err
    assert main([*command, "--method", "grad_cam"]) == 0
    assert {path.stem.split("_")[-1] for path in tmp_path.glob("*.npy")} == {"cam"}


@pytest.mark.parametrize("name", ["\x1b[2J.jpg", "\x1b]0;title\x07.png", "a\rb.png", "\u202egpj.png"])
def test_no_name_moves_the_terminal(capsys, name):
    assert main(["explain", name]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said[:-1].isprintable()


@pytest.mark.parametrize("make", [scene_network, lambda: load_network("scenes", "DEFAULT")])
def test_a_network_with_weights_draws_no_random_numbers(make):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    make()
    assert torch.equal(torch.rand(4), expected)


def test_a_network_without_weights_follows_the_seed():
    torch.manual_seed(3)
    first = scene_network(False).conv1.weight
    assert not torch.equal(first, scene_network(False).conv1.weight)
    torch.manual_seed(3)
    assert torch.equal(first, scene_network(False).conv1.weight)


@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("sigma", lambda: imsmooth(torch.ones(1, 1, 8, 8), 1e7)),
        ("sigma", lambda: imsmooth(torch.ones(1, 1, 8, 8), float("nan"))),
        ("sigma", lambda: imsmooth(torch.ones(1, 1, 8, 8), "1")),
        ("tensor", lambda: imsmooth(np.ones((1, 1, 8, 8)), 1)),
        ("device", lambda: random_masks(3, (8, 8), device="foo")),
        ("device", lambda: random_masks(3, (8, 8), device="cuda:99")),
        ("device", lambda: random_masks(3, (8, 8), device=[])),
        ("dtype", lambda: random_masks(3, (8, 8), dtype="float")),
        ("seed", lambda: smooth_grad(lambda *args: None, seed=-1)),
        ("seed", lambda: smooth_grad(lambda *args: None, seed="0")),
        ("seed", lambda: smooth_grad(lambda *args: None, seed=2**64)),
        ("method", lambda: smooth_grad(nn.Linear(2, 2), torch.ones(1), 3)),
        ("method", lambda: smooth_grad(torch.ones(1))),
    ],
)
def test_helpers_name_the_argument(argument, call):
    with pytest.raises(ValueError, match=f"^{argument}="):
        call()
