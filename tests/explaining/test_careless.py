"""Careless input: one line that names the argument and what is accepted, or the picture that was meant."""

import errno
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from saliency import Preprocessing, compare, explain, gradient
from saliency.images import as_image, read_image, to_picture, write_png
from saliency.plot import contact_sheet, tiles
from saliency.scenes import CLASSES, make_scene, scene_network
from saliency.torchray import plot_example
from tests.cases import NOTICES

pytestmark = pytest.mark.filterwarnings("ignore:saliency_layer=")  # of maps that are zero
IMAGE = make_scene(1).image


@pytest.fixture(scope="module")
def network():
    return scene_network()


def giving(maps):
    def mine(model, input, target):
        return maps

    return [mine]


REFUSED = {
    "classes=('a', 'b') does not fit 8 scores; expected a name for each.": {"classes": ["a", "b"]},
    "classes=3 is of the wrong type; expected a list of the classes' names.": {"classes": [*"abcdefg", 3]},
    "method='mine' gave a tensor of shape (1, 1, 0, 0); expected maps": {"methods": giving(torch.zeros(1, 1, 0, 0))},
    "method='mine' gave a tensor of shape (1, 1, 2, 2) of dtype torch.complex64; expected real": {
        "methods": giving(torch.zeros(1, 1, 2, 2, dtype=torch.complex64))
    },
    "method='mine' gave a tensor of shape (1, 1, 2, 2) of dtype torch.bool": {
        "methods": giving(torch.ones(1, 1, 2, 2) > 0)
    },
    "method='mine' gave a tensor of shape (2, 2); expected maps of shape (1, 1, h, w).": {
        "methods": giving(torch.ones(2, 2))
    },
    "method='mine' gave a ndarray": {"methods": giving(np.ones((1, 1, 2, 2)))},
    "method='mine' gave a NoneType": {"methods": giving(None)},
    "image=None is of the wrong type; expected one photo: its path, a picture of Pillow, an array or a": {
        "image": None
    },
    "image=[] is of the wrong type": {"image": []},
    "image=['a.png', 'b.png'] is of the wrong type; expected one photo": {"image": ["a.png", "b.png"]},
    "photo='' is not a file": {"image": ""},
    "photo='http://a/b.png' is not a file": {"image": "http://a/b.png"},
    "image=a tensor of shape (3, 128, 128) holds values outside [0, 1], as one in 0 to 255 does; expected image /": {
        "image": IMAGE * 255
    },
    "image=a tensor of shape (3, 128, 128) holds NaN": {"image": IMAGE * float("nan")},
    "target=[] is empty": {"target": []},
    "target='-1' is not a class of the network; expected 0 to 7.": {"target": -1},
    "methods=None is of the wrong type; expected 'all', a name in saliency.METHODS": {"methods": [None]},
    "methods={'gradient'} is of the wrong type; expected names of methods or functions, in a list": {
        "methods": {"gradient"}
    },
    "layer='layer3' is an option of none of the methods; expected saliency_layer.": {"layer": "layer3"},
    "method='gradient' is an option of none of the methods (did you mean 'methods'?)": {"method": "gradient"},
    "mean=(0.5, 0.5, 0.5, 0.5) does not fit 3 channels": {"mean": (0.5,) * 4},
}


@pytest.mark.parametrize("message", REFUSED)
def test_one_line_says_what_is_accepted(network, message):
    given = {"image": IMAGE, "target": 0, **REFUSED[message]}
    with pytest.raises(ValueError, match=f"^{re.escape(message)}") as error:
        explain(network, **given)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("models", "given", "message"),
    [
        ("resnet50", {}, "models='resnet50' is of the wrong type; expected a network, a list of them, or a dict"),
        ([], {}, "models=[] holds no network"),
        ({"a": "resnet50"}, {}, "a: model='resnet50' is of the wrong type"),
        ("both", {"saliency_layer": "layer3"}, "vit: saliency_layer='layer3' is not a layer of the model"),
    ],
)
def test_compare_names_the_network(network, models, given, message):
    models = {"cnn": network, "vit": scene_network("vit")} if models == "both" else models
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        compare(models, IMAGE, 0, **given)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (torch.tensor(2), [2]),
        (torch.tensor([2]), [2]),
        (np.int64(2), [2]),
        (("circle", "square"), [0, 1]),
        ([2, "circle", 2], [2, 0]),
    ],
)
def test_ways_to_name_classes(network, target, expected):
    found = explain(network, IMAGE, target, "gradient")
    assert [(score.name, score.class_index) for score in found.scores] == [(CLASSES[i], i) for i in expected]


def grey_network():
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()


def test_one_mean_of_a_network_of_grey_images():
    """A number for all channels: of one, where the first convolution takes one."""
    pixels = torch.rand(1, 20, 30)
    normalised = (pixels - 0.5) / 0.25
    for image, expected in ((normalised, normalised), (pixels[:, :20, :20], normalised[:, :20, :20])):
        found = explain(grey_network(), image, 1, "gradient", mean=0.5, std=0.25, size=20)
        torch.testing.assert_close(found.input, expected[None])
        torch.testing.assert_close(found.picture, (expected * 0.25 + 0.5).expand(3, -1, -1))
    colours = (torch.rand(3, 20, 30) - 0.5) / 0.25
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert torch.equal(explain(model, colours, 1, "gradient", mean=0.5, std=0.25, size=20).input, colours[None])
    given = explain(
        model, to_picture(torch.rand(3, 20, 20)), 1, "gradient", mean=np.full(3, 0.5), std=torch.ones(3), size=20
    )
    assert given.preprocessing.mean == (0.5, 0.5, 0.5)


def test_a_known_network_that_was_built_for_grey_images_needs_its_own_mean():
    model = grey_network()
    model.pretrained_cfg = {"input_size": (3, 20, 20), "mean": (0.5,) * 3, "std": (0.5,) * 3}  # as timm leaves it
    with pytest.raises(ValueError, match=r"^mean=None does not fit 1 channel"):
        explain(model, torch.rand(1, 20, 20), 1, "gradient")
    assert explain(model, torch.rand(1, 20, 20), 1, "gradient", mean=0.1, std=0.3).input.shape == (1, 1, 20, 20)


def test_a_crop_of_another_size_is_the_same_part_of_the_photo(network):
    preprocessing = Preprocessing(128, 16, False, (0.0,) * 3, (1.0,) * 3, CLASSES, resize=160)
    photo = to_picture(torch.rand(3, 200, 300))
    for size in (128, 64, 256):
        found = explain(network, photo, 0, "gradient", preprocessing=preprocessing, size=size, crop=True)
        assert found.input.shape == (1, 3, size, size)
        assert found.picture.shape == (3, 160, 160)


def test_many_targets_of_one_method_follow_each_other(network):
    figure = explain(network, IMAGE, "top7", "gradient").figure()
    tops = [round(axis.get_position().y1, 4) for axis in figure.axes]
    assert [tops.count(top) for top in sorted(set(tops), reverse=True)] == [4, 4]


@pytest.mark.parametrize(
    ("target", "names"),
    [
        (lambda output: output[:, :2], ["lambda 0", "lambda 1"]),
        (lambda output: output[:, 0], ["lambda"]),
        ((2,), ["(2,)"]),
    ],
)
def test_targets_as_methods_take_them(network, target, names):
    found = explain(network, IMAGE, target, ["gradient", "grad_cam"])
    assert [score.name for score in found.scores] == names
    assert torch.equal(found.maps["gradient"], gradient(network, found.input, target).view(1, len(names), 128, 128))


def test_classes_of_an_output_with_a_grid():
    """A segmenter has no row of scores: a class is the sum of its map, by index."""
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU()).eval()
    asked = {"methods": "gradient", "mean": 0.5, "std": 0.5, "size": 20}
    for target in ([1, 3], torch.tensor([[1, 3]])):
        found = explain(model, IMAGE, target, **asked)
        assert [str(score) for score in found.scores] == ["1", "3"]
        assert torch.equal(found.maps["gradient"], gradient(model, found.input, [[1, 3]]))
    assert torch.equal(explain(model, IMAGE, torch.tensor(3), **asked).maps["gradient"], found.maps["gradient"][:, 1:])
    with pytest.raises(ValueError, match="target='cat' is of no use for an output of"):
        explain(model, IMAGE, "cat", **asked)


def test_a_network_inside_a_wrapper_is_recognised(network):
    for model in (nn.DataParallel(network), torch.compile(network, backend="eager")):
        assert explain(model, IMAGE, 0, "rise", num_masks=2).why[0] == "preprocessing: that of the embedded scenes"


@NOTICES
def test_names_that_matplotlib_would_take_for_formulas(network, tmp_path):
    found = explain(network, IMAGE, 0, {"$x^$": gradient, "b": gradient}, classes=["$a_{$"] * 8)
    assert [axis.get_title() for axis in found.figure().axes] == ["image", "$x^$", "b"]
    found.save(tmp_path / "found.png")
    contact_sheet([IMAGE], {"$x^$": [torch.rand(4, 4)]}, ["$a_{$"], tmp_path / "sheet.png")


def test_a_map_of_ones_own_is_kept_without_its_graph(network, tmp_path):
    found = explain(network, IMAGE, 0, giving(torch.ones(1, 1, 2, 2, requires_grad=True)))
    assert not found.maps["mine"].requires_grad
    found.save(tmp_path / "found.NPZ")
    with np.load(tmp_path / "found.NPZ") as maps:
        assert (maps["mine"] == 1).all()


def test_a_layer_named_twice_is_one_column(network):
    assert list(explain(network, IMAGE, 0, saliency_layer=["layer3", "layer3"]).maps) == ["grad_cam"]


def test_the_preprocessing_is_not_taken_for_the_weights(network):
    assert explain(network, IMAGE, 0).why[0] == "preprocessing: that of the embedded scenes"
    assert explain(network, IMAGE, 0, preprocessing=explain(network, IMAGE, 0).preprocessing).why[0] == (
        "preprocessing: as asked"
    )


MAPS = {"a": [torch.rand(4, 4)]}
WRITERS = {
    "save": lambda path: explain(scene_network(), IMAGE, 0, "gradient").save(path),
    "write_png": lambda path: write_png(IMAGE, path),
    "contact_sheet": lambda path: contact_sheet([IMAGE], MAPS, (), path),
    "plot_example": lambda path: plot_example(IMAGE[None], torch.rand(1, 1, 4, 4), "m", 3, save_path=path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_path_that_cannot_be_written_to_is_named(tmp_path, monkeypatch, name):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").write_text("")
    paths = [
        tmp_path / "folder.png",
        tmp_path / "file" / "a.png",
        tmp_path / ("a" * 300 + ".png"),
        f"{tmp_path}/\0.png",
    ]
    for path in paths:
        with pytest.raises(ValueError, match=r"path='.*' cannot be written to \(.+\); expected the path of a file"):
            WRITERS[name](path)
    if name != "write_png":
        with pytest.raises(ValueError, match=r"path='.*new/a\.doc' has no known suffix; expected .*\.pdf"):
            WRITERS[name](tmp_path / "new" / "a.doc")
        assert not (tmp_path / "new").exists()

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(OSError, match="No space left"):
        WRITERS[name](tmp_path / "a.png")


def test_html_and_arrays_that_cannot_be_written(network, tmp_path):
    found = explain(network, IMAGE, 0, gradient)
    for name in ("a.html", "a.npz"):
        (tmp_path / name).mkdir()
        with pytest.raises(ValueError, match=r"cannot be written to \(Is a directory\)"):
            found.save(tmp_path / name)


@pytest.mark.parametrize("white", [1, 255, 65535])
@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_numbers_of_32_bits_keep_their_range(tmp_path, white, kind):
    """Pillow says of them neither the type nor the range that they once had."""
    values = np.array([[0, 0.25, 0.5], [0.75, 0.9, 1]]) * white
    picture = Image.fromarray(values.round().astype(kind) if kind is np.int32 else values.astype(kind))
    picture.save(tmp_path / "photo.tif")
    expected = torch.from_numpy(np.asarray(picture) / white).float().expand(3, 2, 3)
    torch.testing.assert_close(as_image(picture), expected)
    torch.testing.assert_close(read_image(tmp_path / "photo.tif"), expected)


def test_a_picture_that_cannot_be_decoded(tmp_path):
    path = tmp_path / "photo.png"
    to_picture(IMAGE).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with Image.open(path) as picture, pytest.raises(ValueError, match=r"^image=a PngImageFile cannot be read \(.+\)"):
        as_image(picture)


# The rows of a figure, by the number of its pictures: one row as long as they are full-sized, then even ones.
ROWS = {1: [1], 2: [2], 3: [3], 4: [4], 5: [5], 6: [3, 3], 7: [4, 3], 8: [4, 4], 9: [5, 4]}


@pytest.mark.parametrize("count", ROWS)
@pytest.mark.parametrize("size", [(60, 45), (60, 60)])
def test_few_pictures_stand_in_one_row(count, size):
    figure = tiles([[(str(number), Image.new("RGB", size)) for number in range(count)]], "heading")
    tops = [round(axis.get_position().y1, 4) for axis in figure.axes]
    assert [tops.count(top) for top in sorted(set(tops), reverse=True)] == ROWS[count]
