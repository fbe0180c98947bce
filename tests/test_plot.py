"""The contact sheet has every image and map at its place."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from saliency.images import overlay, to_picture

pytest.importorskip("matplotlib")

from saliency.plot import contact_sheet, show


def example():
    generator = torch.Generator().manual_seed(0)
    images = [torch.rand(3, 20, 30, generator=generator), torch.rand(3, 40, 30, generator=generator)]
    maps = {
        "grad_cam": torch.rand(2, 1, 4, 4, generator=generator),
        "gradient": [torch.rand(20, 30, generator=generator), torch.rand(40, 30, generator=generator)],
    }
    return images, maps, ["cat", "dog"]


def test_rows_are_images_and_columns_are_methods():
    images, maps, titles = example()
    figure = show(images, maps, titles)
    axes = np.array(figure.axes).reshape(2, 3)
    assert [axis.get_title() for axis in axes[0]] == ["image", "grad_cam", "gradient"]
    assert [axis.get_ylabel() for axis in axes[:, 0]] == titles
    for row, image in enumerate(images):
        shown = [axis.get_images()[0].get_array() for axis in axes[row]]
        expected = [to_picture(image), overlay(image, maps["grad_cam"][row]), overlay(image, maps["gradient"][row])]
        assert all(np.array_equal(left, np.asarray(right)) for left, right in zip(shown, expected, strict=True))


@pytest.mark.parametrize(
    "title", ["cat", "scene0\nsquare\n79.7%", "a photo of 2026\nChesapeake Bay retriever", "WWW\nMMMM"]
)
def test_titles_are_inside_the_figure(title):
    images, maps, _ = example()
    figure = show(images, maps, [title, title])
    figure.draw_without_rendering()
    for axis in figure.axes:
        for text in (axis.title, axis.yaxis.label):
            box = text.get_window_extent()
            assert box.x0 >= 0
            assert box.y1 <= figure.bbox.height
    assert figure.axes[0].get_window_extent().x0 > figure.axes[0].yaxis.label.get_window_extent().x1


def test_contact_sheet_is_a_picture_of_the_figures_size(tmp_path):
    contact_sheet(*example(), tmp_path / "new" / "sheet.png")
    figure = show(*example())
    with Image.open(tmp_path / "new" / "sheet.png") as picture:
        assert picture.size == pytest.approx(figure.bbox.size, abs=1)
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 1000


def test_many_tall_images_stay_within_what_matplotlib_draws(tmp_path):
    images = list(torch.rand(40, 3, 32, 4))
    contact_sheet(images, {}, [], tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as picture:
        assert 50_000 < picture.height < 2**16


@pytest.mark.parametrize("missing", ["images", "grad_cam", "titles"])
def test_numbers_must_agree(missing):
    images, maps, titles = example()
    given = {"images": images, "titles": titles, **maps}
    given[missing] = given[missing][:1]
    with pytest.raises(ValueError, match=r"=[12] entries do not fit"):
        show(given.pop("images"), {name: given[name] for name in maps}, given["titles"])


def test_no_image():
    with pytest.raises(ValueError, match="images=0 entries"):
        show([], {})


def test_the_channels_of_an_image_are_not_images():
    with pytest.raises(ValueError, match="is not a batch; expected"):
        show(torch.rand(3, 8, 8), {"grad_cam": torch.rand(1, 1, 4, 4)})


def test_missing_matplotlib_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="extra 'plot' of saliency-torch"):
        show(*example())
