"""The imputation beside its system of equations, written out and solved densely."""

import pytest
import torch

from saliency.evaluation.metrics import imputation
from saliency.evaluation.metrics.imputation import linear_imputation

WEIGHTS = {(i, j): 1 / 6 if 0 in (i, j) else 1 / 12 for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0)}


def solved(image, removed):
    """One image (C, H, W): a row for every removed pixel, in loops and float64."""
    channels, height, width = image.shape
    unknown = [(y, x) for y in range(height) for x in range(width) if removed[y, x]]
    place = {pixel: k for k, pixel in enumerate(unknown)}
    matrix = torch.zeros(len(unknown), len(unknown), dtype=torch.float64)
    right = torch.zeros(len(unknown), channels, dtype=torch.float64)
    for k, (y, x) in enumerate(unknown):
        for (i, j), weight in WEIGHTS.items():
            if not (0 <= y + i < height and 0 <= x + j < width):
                continue
            matrix[k, k] += weight
            if (y + i, x + j) in place:
                matrix[k, place[y + i, x + j]] -= weight
            else:
                right[k] += weight * image[:, y + i, x + j].double()
    result = image.double().clone()
    for values, (y, x) in zip(torch.linalg.solve(matrix, right), unknown, strict=True):
        result[:, y, x] = values
    return result


def holes(height, width, share, kind):
    generator = torch.Generator().manual_seed(height * width)
    y, x = torch.arange(height)[:, None] / height, torch.arange(width) / width
    value = {
        "random": torch.rand(height, width, generator=generator),
        "disc": -((y - 0.5) ** 2) - (x - 0.4) ** 2,
        "corner": -y - x,
        "stripes": (10 * x).sin() + 0 * y + 1e-3 * torch.rand(height, width, generator=generator),
    }[kind]
    count = min(round(share * height * width), height * width - 1)
    removed = torch.zeros(height * width, dtype=torch.bool)
    removed[value.flatten().argsort(descending=True)[:count]] = True
    return removed.view(height, width)


def images(height, width, channels=3, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return 2 * torch.randn(1, channels, height, width, generator=generator).to(dtype)


@pytest.mark.parametrize("kind", ["random", "disc", "corner", "stripes"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("size", [(32, 32), (17, 40), (1, 9), (13, 1), (2, 2), (3, 5)])
def test_solves_the_system(size, share, kind):
    image, removed = images(*size), holes(*size, share, kind)
    ours = linear_imputation(image, removed[None, None])[0].double()
    assert (ours - solved(image[0], removed)).abs().max() < 2e-5


def test_double_precision_stays():
    image, removed = images(20, 20, 1, torch.float64), holes(20, 20, 0.8, "disc")
    ours = linear_imputation(image, removed[None, None])
    assert ours.dtype == torch.float64
    assert (ours[0] - solved(image[0], removed)).abs().max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(dtype):
    image, removed = images(20, 20, 3, dtype), holes(20, 20, 0.8, "disc")
    ours = linear_imputation(image, removed[None, None])
    exact = solved(image[0].float(), removed)
    assert ours.dtype == dtype
    assert ((ours[0].double() - exact).abs() <= torch.finfo(dtype).eps * exact.abs() + 1e-5).all()


def test_kept_pixels_stay_bit_for_bit_and_nothing_is_written():
    image, removed = images(31, 24), holes(31, 24, 0.7, "random")[None, None]
    before = image.clone(), removed.clone()
    ours = linear_imputation(image, removed)
    kept = ~removed.expand_as(image)
    assert torch.equal(ours[kept], image[kept])
    assert torch.equal(image, before[0])
    assert torch.equal(removed, before[1])
    assert torch.equal(linear_imputation(image, torch.zeros_like(removed)), image)


def test_what_is_linear_inside_the_image_is_found_again():
    y, x = torch.arange(40.0)[:, None], torch.arange(50.0)
    image = (0.3 * x - 0.2 * y + 4)[None, None]
    removed = torch.zeros(1, 1, 40, 50, dtype=torch.bool)
    removed[..., 5:33, 8:41] = True
    assert torch.allclose(linear_imputation(image, removed), image, atol=1e-4)


def test_an_image_does_not_depend_on_the_others():
    kinds = ["random", "disc", "corner", "stripes"] * 4
    removed = torch.stack([holes(48, 48, 0.9, kind) for kind in kinds])[:, None]
    image = images(48, 48).expand(len(kinds), -1, -1, -1) * torch.arange(1.0, 17).view(-1, 1, 1, 1)
    together = linear_imputation(image, removed)
    for n in range(4):
        assert torch.equal(linear_imputation(image[n : n + 1], removed[n : n + 1]), together[n : n + 1])


@pytest.mark.parametrize("kind", ["random", "disc", "corner", "stripes"])
def test_a_large_hole_needs_few_steps(kind, monkeypatch):
    monkeypatch.setattr(imputation, "_MAX_STEPS", 25)
    linear_imputation(images(224, 224), holes(224, 224, 0.9, kind)[None, None])


def test_says_when_it_does_not_converge(monkeypatch):
    monkeypatch.setattr(imputation, "_MAX_STEPS", 2)
    with pytest.raises(RuntimeError, match="did not converge in 2 steps, for 1 images"):
        linear_imputation(images(32, 32), holes(32, 32, 0.9, "disc")[None, None])


def test_images_of_zeros_and_of_large_values():
    removed = holes(16, 16, 0.6, "disc")[None, None]
    assert not linear_imputation(torch.zeros(1, 3, 16, 16), removed).any()
    assert torch.allclose(linear_imputation(torch.full((1, 1, 16, 16), 1e6), removed), torch.tensor(1e6))


def test_what_cannot_be_imputed_is_refused():
    image, removed = images(4, 4), torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"^removed=True everywhere .*; expected .*\.$"):
        linear_imputation(image, ~removed)
    with pytest.raises(ValueError, match=r"^removed=.*float32 does not fit"):
        linear_imputation(image, removed.float())
    with pytest.raises(ValueError, match=r"^removed=\(1, 4, 4\)"):
        linear_imputation(image, removed[0])
    with pytest.raises(ValueError, match=r"^input=\(3, 4, 4\)"):
        linear_imputation(image[0], removed)
    with pytest.raises(ValueError, match="finite"):
        linear_imputation(image / 0, removed)
