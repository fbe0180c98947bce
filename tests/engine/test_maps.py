"""Maps: division, filters, sizes and layouts, against definitions written out in loops."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from saliency import gradient_to_saliency, imsmooth, max_channels, resize_saliency, sum_channels
from saliency.engine.layouts import read, to_channels_first, token_grid
from saliency.engine.maps import (
    Attribution,
    check_map_options,
    finish_map,
    gradient_of,
    join_targets,
    safe_divide,
)

FEW = settings(max_examples=40, deadline=None)
NUMBERS = st.floats(-1e6, 1e6)


@FEW
@given(st.lists(st.tuples(NUMBERS, st.one_of(st.just(0.0), st.just(-0.0), NUMBERS)), min_size=1))
def test_safe_divide(pairs):
    a, b = torch.tensor(pairs, dtype=torch.float64).T
    expected = [x / y if y != 0 else 0.0 for x, y in pairs]
    assert safe_divide(a, b).tolist() == expected


def test_safe_divide_keeps_dtype_broadcasts_and_knows_no_epsilon():
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert safe_divide(torch.ones(2, 1, dtype=dtype), torch.zeros(1, 3, dtype=dtype)).dtype == dtype
    assert safe_divide(torch.ones(2, 1), torch.zeros(1, 3)).shape == (2, 3)
    tiny = torch.tensor(1e-30)
    assert safe_divide(tiny, tiny).item() == 1
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    safe_divide(x, torch.tensor([0.0, 4.0])).sum().backward()
    assert x.grad.tolist() == [0, 0.25]
    assert safe_divide(torch.tensor([math.inf, math.nan]), torch.zeros(2)).tolist() == [0, 0]


@FEW
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3))
def test_reductions(n, c, h):
    x = torch.randn(n, c, h, 2, dtype=torch.float64)
    x.grad = torch.randn_like(x)
    for i in range(n):
        for u in range(h):
            for v in range(2):
                gradients = [x.grad[i, k, u, v].item() for k in range(c)]
                values = [x[i, k, u, v].item() for k in range(c)]
                assert gradient_to_saliency(x)[i, 0, u, v].item() == max(map(abs, gradients))
                assert max_channels(x)[i, 0, u, v].item() == max(map(abs, values))
                assert sum_channels(x)[i, 0, u, v].item() == pytest.approx(math.fsum(values))
    assert gradient_to_saliency(x).shape == max_channels(x).shape == sum_channels(x).shape == (n, 1, h, 2)
    assert Attribution(None, "activation")(x) is x
    assert Attribution(None, "activation").unscaled()(x) is x
    assert torch.equal(Attribution(sum_channels, "activation")(x), sum_channels(x))
    assert gradient_of(x) is x.grad


def test_no_gradient_is_an_error():
    with pytest.raises(ValueError, match=r"x=\(1, 2\) has no gradient; .*expected .*\.$"):
        gradient_to_saliency(torch.ones(1, 2))


def _gaussian(image: list[list[float]], sigma: float) -> list[list[float]]:
    """The definition: a weighted mean over a square window, the border repeated."""
    width = math.ceil(4 * sigma)
    window = range(-width, width + 1)
    weights = {(i, j): math.exp(-(i * i + j * j) / (2 * sigma * sigma)) for i in window for j in window}
    total = math.fsum(weights.values())
    height, length = len(image), len(image[0])

    def at(i: int, j: int) -> float:
        return image[min(max(i, 0), height - 1)][min(max(j, 0), length - 1)]

    return [
        [math.fsum(w * at(i + u, j + v) for (u, v), w in weights.items()) / total for j in range(length)]
        for i in range(height)
    ]


@pytest.mark.parametrize("sigma", [0.1, 0.3, 0.9, 1.7])
def test_imsmooth_is_a_gaussian(sigma):
    image = torch.randn(2, 3, 4, 7, dtype=torch.float64)
    found = imsmooth(image, sigma, padding_mode="replicate")
    for n in range(2):
        expected = torch.tensor(_gaussian(image[n, 1].tolist(), sigma), dtype=torch.float64)
        torch.testing.assert_close(found[n, 1], expected, rtol=1e-12, atol=1e-13)


def test_imsmooth_pads_with_a_value_by_default():
    """A single pixel keeps the weight at the window's centre."""
    one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    weights = [math.exp(-(i * i) / (2 * 0.8 * 0.8)) for i in range(-4, 5)]
    centre = (1 / math.fsum(weights)) ** 2
    assert imsmooth(one, 0.8).item() == pytest.approx(centre, rel=1e-12)
    assert imsmooth(one, 0.8, padding_value=1.0).item() == pytest.approx(1, rel=1e-12)
    assert imsmooth(one, 0.8, padding_value=3.0).item() == pytest.approx(centre + 3 * (1 - centre), rel=1e-12)


@FEW
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 3), st.integers(0, 2), st.floats(0, 2))
def test_imsmooth_strides_and_paddings(h, w, stride, padding, sigma):
    image = torch.randn(1, 2, h, w, dtype=torch.float64)
    full = imsmooth(F.pad(image, [padding] * 4), sigma)
    found = imsmooth(image, sigma, stride=stride, padding=padding)
    assert found.shape[2:] == (math.ceil((h + 2 * padding) / stride), math.ceil((w + 2 * padding) / stride))
    torch.testing.assert_close(found, full[..., ::stride, ::stride])


@FEW
@given(st.floats(0, 3), st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]))
def test_imsmooth_keeps_constants_and_dtype(sigma, dtype):
    image = torch.full((1, 2, 5, 4), 3.0, dtype=dtype)
    found = imsmooth(image, sigma, padding_mode="replicate")
    assert found.dtype == dtype
    tolerance = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 0.05, torch.float16: 0.01}[dtype]
    torch.testing.assert_close(found, image, rtol=tolerance, atol=0)
    assert torch.equal(imsmooth(image, 0), image)


def test_imsmooth_inside_autocast_keeps_its_dtype():
    image = torch.rand(1, 1, 5, 4)
    with torch.autocast("cpu", torch.bfloat16):
        found = imsmooth(image, 1.0)
    assert found.dtype == torch.float32
    assert torch.equal(found, imsmooth(image, 1.0))


@pytest.mark.parametrize("sigma", [-1, -1e-9, math.nan, math.inf])
def test_imsmooth_refuses(sigma):
    with pytest.raises(ValueError, match=r"^sigma=.*expected .*\.$"):
        imsmooth(torch.ones(1, 1, 2, 2), sigma)


def test_resize_is_width_then_height():
    saliency = torch.tensor([[[[0.0, 4.0]]]])
    image = torch.zeros(1, 3, 5, 6)
    assert resize_saliency(image, saliency, False, "bilinear") is saliency
    assert resize_saliency(image, saliency, True, "nearest").shape == (1, 1, 5, 6)
    assert resize_saliency(image, saliency, (4, 1), "nearest").tolist() == [[[[0, 0, 4, 4]]]]
    # Pixel centres: the four new ones lie at 1/4, 3/4, 5/4 and 7/4 of the old pixels' width.
    assert resize_saliency(image, saliency, [4, 1], "bilinear").tolist() == [[[[0, 1, 3, 4]]]]
    for mode in ("nearest", "nearest-exact", "bilinear", "bicubic", "area"):
        assert resize_saliency(image, saliency, (3, 7), mode).shape == (1, 1, 7, 3)


def test_smooth_is_a_fraction_of_the_longer_side_after_resizing():
    saliency, image = torch.randn(1, 2, 3, 4, dtype=torch.float64), torch.zeros(1, 3, 6, 10)
    assert finish_map(saliency, image, False, "bilinear", 0) is saliency
    raw = F.interpolate(saliency, (6, 10), mode="bilinear")
    found = finish_map(saliency, image, True, "bilinear", 0.05)
    for k in range(2):
        expected = torch.tensor(_gaussian(raw[0, k].tolist(), 0.5), dtype=torch.float64)
        torch.testing.assert_close(found[0, k], expected, rtol=1e-12, atol=1e-13)


@FEW
@given(st.integers(1, 4), st.integers(1, 12), st.integers(1, 12), st.integers(0, 5), st.integers(1, 16))
def test_tokens_of_square_patches(n, rows, columns, extra, patch):
    """A token's place in the sequence is its place in the grid, row by row; extra tokens stand in front."""
    height, width = rows * patch + patch // 3, columns * patch + patch // 2
    channels = 3
    grid = torch.arange(n * rows * columns * channels, dtype=torch.float64).view(n, rows, columns, channels)
    tokens = torch.cat([torch.full((n, extra, channels), -1.0), grid.flatten(1, 2)], 1)
    named = to_channels_first(tokens, (height, width), (rows, columns))
    assert torch.equal(named, grid.permute(0, 3, 1, 2))
    guessed = token_grid(rows * columns + extra, (height, width))
    assert guessed is not None
    if guessed == (rows, columns):
        assert torch.equal(to_channels_first(tokens, (height, width)), named)
    else:  # a grid may be mistaken for a larger one with fewer extra tokens, or for one that fills the image
        fills = height % guessed[0] == 0 and width % guessed[1] == 0
        assert fills or guessed[0] * guessed[1] > rows * columns


@pytest.mark.parametrize(
    ("tokens", "size", "grid"),
    [
        (196, (224, 224), (14, 14)),
        (197, (224, 224), (14, 14)),  # ViT: a class token
        (198, (224, 224), (14, 14)),  # DeiT: a distillation token too
        (201, (224, 224), (14, 14)),  # DINOv2: four registers
        (50, (224, 224), (7, 7)),
        (257, (224, 224), (16, 16)),
        (577, (384, 384), (24, 24)),
        (1 + 14 * 28, (224, 448), (14, 28)),
        (1 + 28 * 14, (448, 224), (28, 14)),
        (49, (224, 224), (7, 7)),
        (120, (224, 224), None),  # no square, and more than a few extra tokens
    ],
)
def test_token_grids_of_well_known_networks(tokens, size, grid):
    assert token_grid(tokens, size) == grid


LINEAR, CONV = nn.Linear(1, 1), nn.Conv2d(1, 1, 1)


@pytest.mark.parametrize(
    ("shape", "size", "module", "last"),
    [
        ((2, 96, 56, 56), (224, 224), None, False),
        ((2, 56, 56, 96), (224, 224), None, True),
        ((2, 7, 7, 768), (224, 224), LINEAR, True),
        ((2, 768, 7, 7), (224, 224), LINEAR, False),
        ((2, 5, 6, 7), (11, 14), CONV, False),
        ((2, 4, 5, 10), (12, 15), LINEAR, True),
        ((2, 512, 1, 1), (32, 32), LINEAR, False),
        ((2, 6, 6, 6), (12, 12), CONV, False),
        ((2, 14, 28, 512), (224, 448), None, True),
        ((2, 512, 14, 28), (224, 448), None, False),
    ],
)
def test_channels_first_or_last(shape, size, module, last):
    x = torch.randn(shape)
    found = to_channels_first(x, size, None, module)
    assert torch.equal(found, x.permute(0, 3, 1, 2) if last else x)
    assert read(x.shape, size).sides == found.shape[2:]


@pytest.mark.parametrize("module", [nn.Linear(6, 6), nn.LayerNorm(6), nn.Sequential(nn.GELU(), nn.Linear(6, 6))])
def test_an_ambiguous_shape_asks_for_the_layout(module):
    x = torch.randn(2, 6, 6, 6)
    with pytest.raises(ValueError, match=r"layout=None is ambiguous .*\(2, 6, 6, 6\).*expected .*'channels_last'"):
        to_channels_first(x, (12, 12), None, module)
    assert torch.equal(to_channels_first(x, (12, 12), "channels_first", module), x)
    assert torch.equal(to_channels_first(x, (12, 12), "channels_last", module), x.permute(0, 3, 1, 2))


def test_other_layouts():
    x = torch.randn(2, 5)
    assert to_channels_first(x, (12, 12)).shape == (2, 5, 1, 1)
    assert to_channels_first(x, ()).shape == (2, 5, 1, 1)
    y = torch.randn(2, 3, 4, 5, 6)
    assert to_channels_first(y, (8, 10, 12)) is y
    assert to_channels_first(y, (12, 12), lambda x: x.flatten(3)).shape == (2, 3, 4, 30)
    assert to_channels_first(y, (12, 12), "layer") is y
    assert to_channels_first(torch.randn(2, 3, 9), (20,)).shape == (2, 3, 9)


@pytest.mark.parametrize(
    ("shape", "layout"), [((2, 120, 8), None), ((2, 5, 8), (2, 3)), ((2, 3, 4, 5, 6), None), ((2, 3, 4, 5), (3, 4))]
)
def test_no_grid_is_an_error(shape, layout):
    with pytest.raises(ValueError, match=r"^layout=.*does not describe a grid .*expected .*\.$"):
        to_channels_first(torch.zeros(shape), (224, 224), layout)


def test_join_targets():
    maps = [torch.full((2, 1, 3, 4), float(k)) for k in range(3)]
    assert join_targets(maps[:1]) is maps[0]
    assert join_targets(maps)[1, :, 2, 3].tolist() == [0, 1, 2]
    attributions = [torch.full((2, 5, 3, 4), float(k)) for k in range(3)]
    assert join_targets(attributions).shape == (2, 3, 5, 3, 4)
    assert join_targets(attributions)[1, :, 4, 2, 3].tolist() == [0, 1, 2]


@pytest.mark.parametrize("resize", [True, False, (3, 4), [3, 4], torch.Size([3, 4])])
@pytest.mark.parametrize("layout", [None, "channels_first", "channels_last", "layer", (2,), (2, 3), (2, 3, 4), len])
def test_map_options_that_are_accepted(resize, layout):
    check_map_options(resize, "bicubic", 0.5, layout)
    check_map_options(resize, "area", 1, layout)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        *(
            ("resize", value)
            for value in (3, (3,), (3, 4, 5), (3.0, 4), (0, 4), (3, -4), (True, 4), "34", None, {3, 4})
        ),
        *(("resize_mode", value) for value in ("cubic", "", None, 0, "Bilinear")),
        *(("smooth", value) for value in (-1, math.nan, math.inf, "1", None, True, [1])),
        *(("layout", value) for value in ("NHWC", 3, (), (2, 0), (2, 3, 4, 5), (2.0, 3), "")),
    ],
)
def test_map_options_that_are_not(argument, value):
    options = {"resize": False, "resize_mode": "bilinear", "smooth": 0, "layout": None, argument: value}
    with pytest.raises(ValueError, match=rf"(?s)^{argument}=.*expected .*\.$") as error:
        check_map_options(**options)
    assert str(error.value).startswith(f"{argument}={value!r} ")


def test_patches_that_fill_the_image_come_first():
    assert token_grid(69, (32, 512)) == (2, 32)  # patches of 16, 5 extra tokens
    assert token_grid(11, (32, 320)) == (1, 10)
    assert token_grid(196, (225, 225)) == (14, 14)  # none fills the image without a rest
