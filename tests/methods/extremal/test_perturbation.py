"""Perturbation pyramids and smooth masks, next to their definitions in plain loops."""

import math

import pytest
import torch

from saliency.methods.extremal import perturbation
from saliency.methods.extremal.perturbation import MaskGenerator, Perturbation

SHAPES = [((9, 14), 3, 4), ((8, 5), 2, 4.5), ((10, 10), 4, 6), ((6, 7), 1, 2), ((7, 9), 5, 1)]


def kernel(distance, sigma):
    return math.exp(-2 * max(0, distance / sigma - 0.5) ** 2)


def mask_by_definition(parameters, shape, step, sigma, pooling_method):
    """The mask at every pixel, from the cells of its window, one after the other; outside the grid, cells are 0."""
    radius, padding = 1 + math.ceil(sigma / step), 1 + math.ceil(2 * sigma / step)
    result = torch.empty(shape, dtype=torch.float64)
    for y in range(shape[0]):
        for x in range(shape[1]):
            v, u = y + round(sigma), x + round(sigma)  # in the mask with margin
            values = []
            for i in range(v // step - padding, v // step - padding + 2 * radius + 1):
                for j in range(u // step - padding, u // step - padding + 2 * radius + 1):
                    inside = 0 <= i < parameters.shape[0] and 0 <= j < parameters.shape[1]
                    distance = math.hypot(v - sigma - step * i, u - sigma - step * j)
                    values.append(kernel(distance, sigma) * (float(parameters[i, j]) if inside else 0))
            if pooling_method == "softmax":
                total = sum(math.exp(20 * z) for z in values)
                value = sum(z * math.exp(20 * z) for z in values) / total
            else:
                value = sum(values) if pooling_method == "sum" else 1 / (1 + math.exp(3 - 20 * sum(values)))
            result[y, x] = min(max(value, 0), 1)
    return result


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


class TestMaskGenerator:
    @pytest.mark.parametrize("pooling_method", perturbation.POOLING_METHODS)
    @pytest.mark.parametrize(("shape", "step", "sigma"), SHAPES)
    def test_definition(self, shape, step, sigma, pooling_method):
        generator = MaskGenerator(shape, step, sigma, pooling_method=pooling_method)
        assert generator.shape_in == tuple(math.ceil(side / step) for side in shape)
        parameters = draw(2, 1, *generator.shape_in) / (1 if pooling_method == "softmax" else 20)
        cropped, full = generator.generate(parameters)
        assert cropped.shape == (2, 1, *shape)
        assert full.shape == (2, 1, *generator.shape_out)
        top = round(sigma)
        assert torch.equal(full[..., top : top + shape[0], top : top + shape[1]], cropped)
        for row, mask in zip(parameters, cropped, strict=True):
            torch.testing.assert_close(mask[0], mask_by_definition(row[0], shape, step, sigma, pooling_method))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    def test_precision(self, dtype):
        generator = MaskGenerator((12, 15), 4, 6)
        parameters = draw(1, 1, *generator.shape_in, dtype=dtype)
        mask = generator.generate(parameters)[0]
        exact = generator.generate(parameters.double())[0]
        assert mask.dtype == dtype
        assert (mask.double() - exact).abs().max() < max(4e-6, torch.finfo(dtype).eps)

    @pytest.mark.parametrize("pooling_method", perturbation.POOLING_METHODS)
    def test_gradient(self, pooling_method):
        generator = MaskGenerator((5, 7), 2, 3, clamp=False, pooling_method=pooling_method)
        parameters = (draw(2, 1, *generator.shape_in) / 4).requires_grad_()
        assert torch.autograd.gradcheck(lambda x: generator.generate(x)[1], (parameters,))

    def test_blocks_do_not_show(self, monkeypatch):
        generator = MaskGenerator((9, 14), 3, 4)
        parameters = draw(3, 1, *generator.shape_in).requires_grad_()
        results = []
        for size in (1, 5000, 10**9):
            monkeypatch.setattr(perturbation, "_CPU_BLOCK", size)
            mask = generator.generate(parameters)[1]
            results.append((mask.detach(), *torch.autograd.grad(mask.square().sum(), parameters)))
        for mask, gradient in results[1:]:
            torch.testing.assert_close(mask, results[0][0], rtol=1e-13, atol=1e-13)
            torch.testing.assert_close(gradient, results[0][1], rtol=1e-11, atol=1e-13)

    def test_without_clamp(self):
        options = {"shape": (6, 6), "step": 2, "sigma": 3, "pooling_method": "sum"}
        parameters = torch.ones(1, 1, 3, 3, dtype=torch.float64)
        free = MaskGenerator(**options, clamp=False).generate(parameters)[1]
        assert free.max() > 1
        assert torch.equal(MaskGenerator(**options).generate(parameters)[1], free.clamp(0, 1))

    def test_autocast_does_not_round(self):
        generator = MaskGenerator((6, 6), 2, 3, pooling_method="sum")
        parameters = draw(1, 1, 3, 3, dtype=torch.float32) / 9
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mask = generator.generate(parameters)[0]
        assert torch.equal(mask, generator.generate(parameters)[0])

    def test_to(self):
        generator = MaskGenerator((6, 6), 2, 3)
        assert generator.to(torch.float32) is generator
        assert generator.weight.dtype == torch.float32

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"step": 0}, r"step=0 is not a number of positions; expected an int >= 1\."),
            ({"step": 2.5}, r"step=2\.5 is not a number"),
            ({"sigma": 0}, r"sigma=0 is not a number of positions; expected a number > 0\."),
            ({"sigma": True}, r"sigma=True is not a number"),
            ({"pooling_method": "max"}, r"pooling_method='max' is not a method; expected one of softmax, sum"),
        ],
    )
    def test_errors(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            MaskGenerator(**{"shape": (6, 6), "step": 2, "sigma": 3, **arguments})

    def test_parameters_of_another_shape(self):
        with pytest.raises(ValueError, match=r"mask_in=\(1, 1, 4, 3\) does not fit; expected \(B, 1, \*\(3, 3\)\)\."):
            MaskGenerator((6, 6), 2, 3).generate(torch.ones(1, 1, 4, 3))


def blurred(x, sigma):
    """An image filtered by a Gaussian that sums to 1, zeros around it: a sum over all pixels."""
    weight = torch.tensor([math.exp(-(i**2) / (2 * sigma**2)) for i in range(math.ceil(4 * sigma) + 1)]).double()
    weight = weight / (2 * weight.sum() - 1)
    result = torch.zeros_like(x)
    for v in range(x.shape[0]):
        for u in range(x.shape[1]):
            for i in range(x.shape[0]):
                for j in range(x.shape[1]):
                    if max(abs(v - i), abs(u - j)) < len(weight):
                        result[v, u] += weight[abs(v - i)] * weight[abs(u - j)] * x[i, j]
    return result


class TestPerturbation:
    def test_blur(self):
        x = draw(1, 2, 5, 6)
        pyramid = Perturbation(x, num_levels=3, max_blur=2).pyramid
        assert pyramid.shape == (3, 2, 5, 6)
        for level, sigma in ((0, 2), (1, 1)):
            for channel in range(2):
                torch.testing.assert_close(pyramid[level, channel], blurred(x[0, channel], sigma), rtol=1e-6, atol=1e-7)
        assert torch.equal(pyramid[2], x[0])

    def test_fade(self):
        x = draw(2, 2, 3, 4)
        pyramid = Perturbation(x, num_levels=5, type="fade").pyramid
        for n in range(2):
            for level in range(5):
                torch.testing.assert_close(pyramid[5 * n + level], x[n] * level / 4)

    @pytest.mark.parametrize("kind", ["blur", "fade"])
    def test_a_mask_picks_a_level_at_every_position(self, kind):
        perturb = Perturbation(draw(2, 3, 4, 5), num_levels=4, max_blur=2, type=kind)
        mask = draw(6, 1, 4, 5, seed=1)
        mask[0, 0, 0], mask[1, 0, 0], mask[2, 0, 0] = 0, 1, 2 / 3
        result = perturb.apply(mask)
        pyramid = perturb.pyramid.view(2, 4, 3, 4, 5)
        for row in range(6):
            for c, v, u in torch.cartesian_prod(torch.arange(3), torch.arange(4), torch.arange(5)).tolist():
                level = float(mask[row, 0, v, u]) * 3
                below = min(math.floor(level), 2)
                y = pyramid[row // 3, :, c, v, u]
                expected = (below + 1 - level) * y[below] + (level - below) * y[below + 1]
                torch.testing.assert_close(result[row, c, v, u], expected)

    def test_images_of_the_masks(self):
        perturb = Perturbation(draw(3, 2, 4, 5))
        mask, images = draw(4, 1, 4, 5, seed=1), torch.tensor([2, 0, 2, 1])
        singles = [Perturbation(draw(3, 2, 4, 5)[i : i + 1]).apply(mask[r : r + 1]) for r, i in enumerate(images)]
        torch.testing.assert_close(perturb.apply(mask, images), torch.cat(singles))

    def test_gradient(self):
        perturb = Perturbation(draw(1, 2, 3, 4), num_levels=3, max_blur=2)
        mask = draw(2, 1, 3, 4, seed=1).requires_grad_()
        assert torch.autograd.gradcheck(perturb.apply, (mask,))

    def test_to(self):
        perturb = Perturbation(draw(1, 2, 3, 4))
        assert perturb.to(torch.float32) is perturb
        assert perturb.pyramid.dtype == torch.float32
        assert perturb.to("meta").pyramid.device.type == "meta"

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"input": torch.ones(4, 4)}, "input=a tensor of shape .* is not a batch of images; expected .*"),
            ({"input": torch.ones(1, 3, 4, 4).int()}, "input=a tensor of shape .* is not a batch of images"),
            ({"type": "noise"}, r"type='noise' is not a perturbation; expected one of blur, fade\."),
            ({"num_levels": 1}, r"num_levels=1 is not a number of levels; expected an int >= 2\."),
            ({"max_blur": 0}, r"max_blur=0 is not a standard deviation; expected a number > 0\."),
        ],
    )
    def test_errors(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            Perturbation(**{"input": torch.ones(1, 3, 4, 4), **arguments})
