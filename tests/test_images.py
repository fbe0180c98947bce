"""Photos of every kind arrive as RGB in [0, 1]; pictures show the map without changing it."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import functional as peer

from saliency.images import colours, display_range, normalise, overlay, read_image, resize_image, to_picture, write_png

# EXIF: the side of the scene that the stored row 0 and column 0 are on, as an operation on (3, H, W).
UPRIGHT = {
    1: lambda image: image,
    2: lambda image: image.flip(2),
    3: lambda image: image.flip(1, 2),
    4: lambda image: image.flip(1),
    5: lambda image: image.transpose(1, 2),
    6: lambda image: image.rot90(-1, (1, 2)),
    7: lambda image: image.transpose(1, 2).flip(1, 2),
    8: lambda image: image.rot90(1, (1, 2)),
}


def random_pixels(height=5, width=7, channels=3, seed=0):
    return np.random.RandomState(seed).randint(0, 256, (height, width, channels)).astype(np.uint8)


def as_tensor(pixels):
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_photo_is_turned_upright(tmp_path, orientation):
    pixels = random_pixels()
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "photo.png", exif=exif)
    torch.testing.assert_close(read_image(tmp_path / "photo.png"), UPRIGHT[orientation](as_tensor(pixels)))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "LA", "RGBA"])
def test_every_opaque_mode_is_read_as_rgb(tmp_path, mode):
    image = Image.fromarray(random_pixels()).convert(mode)
    path = tmp_path / ("photo.tif" if mode == "CMYK" else "photo.png")
    image.save(path)
    torch.testing.assert_close(read_image(path), as_tensor(np.array(image.convert("RGB"))))


def test_transparent_pixels_lie_over_white(tmp_path):
    pixels = random_pixels(channels=4)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    colour, opacity = as_tensor(pixels[..., :3]), as_tensor(pixels[..., 3:])
    expected = colour * opacity + (1 - opacity)
    torch.testing.assert_close(read_image(tmp_path / "photo.png"), expected, atol=1.01 / 255, rtol=0)


def test_transparent_palette_entry_is_white(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([0, 1])
    image.save(tmp_path / "photo.gif", transparency=0)
    expected = torch.tensor([[1, 1, 1], [200 / 255, 100 / 255, 50 / 255]]).T[:, None]
    torch.testing.assert_close(read_image(tmp_path / "photo.gif"), expected)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_keep_their_range(tmp_path, suffix):
    values = np.array([[0, 255, 256], [30000, 65534, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / f"photo.{suffix}")
    expected = torch.tensor(values / 65535, dtype=torch.float32).expand(3, 2, 3)
    torch.testing.assert_close(read_image(tmp_path / f"photo.{suffix}"), expected)


def jpeg(height=64, width=64):
    buffer = io.BytesIO()
    Image.fromarray(random_pixels(height, width)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [b"", b"not an image", jpeg()[:600], b"\x89PNG\r\n\x1a\n" + bytes(40)],
    ids=["empty", "text", "cut", "png"],
)
def test_what_is_no_image_is_named(tmp_path, content):
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"photo='.*photo\.jpg' cannot be read \(.+\); expected"):
        read_image(path)


@pytest.mark.parametrize("name", ["nowhere.jpg", "."])
def test_missing_file_is_named(tmp_path, name):
    with pytest.raises(ValueError, match=r"^photo='.*' is not a file"):
        read_image(tmp_path / name)


@pytest.mark.parametrize(
    ("height", "width", "expected"), [(100, 150, (64, 96)), (150, 100, (96, 64)), (20, 20, (64, 64))]
)
def test_resize_keeps_the_whole_photo(height, width, expected):
    image = torch.rand(3, height, width, generator=torch.Generator().manual_seed(0))
    resized = resize_image(image, 64)
    assert resized.shape == (3, *expected)
    torch.testing.assert_close(resized, peer.resize(image, 64, antialias=True))


def test_resize_to_a_square_and_of_a_thin_strip():
    assert resize_image(torch.rand(3, 30, 90), 32, square=True).shape == (3, 32, 32)
    assert resize_image(torch.rand(3, 1, 100_000), 32).shape == (3, 32, 256)


def test_normalise_as_torchvision():
    image, mean, std = torch.rand(2, 3, 4, 5), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    torch.testing.assert_close(normalise(image, mean, std), peer.normalize(image, mean, std))


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40), st.sampled_from([0.0, 1.0]))
def test_display_range_keeps_order_and_bounds(values, positive):
    values = torch.tensor(values)[None]
    values = values.abs() if positive else values
    shown = display_range(values)
    lowest = -1 if (values < 0).any() else 0
    assert shown.min() >= lowest
    assert shown.max() <= 1
    order = values.flatten().argsort()
    assert (shown.flatten()[order].diff() >= 0).all()
    if lowest < 0:
        assert ((shown == 0) | (shown.sign() == values.sign())).all()


def test_display_range_is_not_dominated_by_one_pixel():
    values = torch.ones(100, 100)
    values[0, 0], values[1] = 1e6, 0
    assert display_range(values)[2, 2] == 1


def test_display_range_of_a_few_pixels_among_zeros():
    values = torch.zeros(100, 100)
    values[3, 4] = 1e-12
    assert display_range(values).nonzero().tolist() == [[3, 4]]


@pytest.mark.parametrize("value", [0.0, 3.0, float("nan")])
def test_display_range_of_a_constant_map(value):
    assert not display_range(torch.full((4, 4), value)).any()


def test_lightness_grows_with_the_value():
    for values in (torch.linspace(0, 1, 50)[None], torch.linspace(-1, 0, 50)[None]):
        lightness = (torch.tensor([0.2126, 0.7152, 0.0722])[:, None, None] * colours(values)).sum(0).flatten()
        assert (lightness.diff() > 0).all()


@pytest.mark.parametrize("shape", [(4, 6), (1, 4, 6), (1, 1, 4, 6), (8, 12), (16, 24)])
def test_overlay_covers_only_where_the_map_is(shape):
    image = torch.rand(3, 8, 12)
    saliency_map = torch.zeros(shape)
    saliency_map[..., : shape[-2] // 2, :] = 2.0
    before = saliency_map.clone()
    picture = overlay(image, saliency_map)
    assert picture.size == (12, 8)
    assert torch.equal(saliency_map, before)
    plain = np.asarray(to_picture(image))
    changed = (np.asarray(picture) != plain).any(-1)
    assert changed[:2].all()
    assert not changed[6:].any()
    assert np.array_equal(np.asarray(overlay(image, saliency_map, alpha=0)), plain)


def test_overlay_of_a_signed_map_is_red_and_blue():
    signed = torch.tensor([[1.0, 0.0, -1.0]]).expand(3, 3)
    picture = np.asarray(overlay(torch.full((3, 3, 3), 0.5), signed)).astype(int)
    assert picture[0, 0, 0] > picture[0, 0, 2]
    assert picture[0, 2, 2] > picture[0, 2, 0]
    assert len(set(picture[0, 1])) == 1


@pytest.mark.parametrize("shape", [(5,), (2, 4, 4), (0, 4), (1, 2, 4, 4)])
def test_overlay_needs_one_map(shape):
    with pytest.raises(ValueError, match="saliency_map="):
        overlay(torch.rand(3, 4, 4), torch.rand(shape))


@pytest.mark.parametrize("convert", [as_tensor, Image.fromarray], ids=["tensor", "picture"])
def test_png_keeps_every_pixel(tmp_path, convert):
    pixels = random_pixels(3, 9)
    write_png(convert(pixels), tmp_path / "new" / "photo.png")
    with Image.open(tmp_path / "new" / "photo.png") as picture:
        assert np.array_equal(np.asarray(picture), pixels)
