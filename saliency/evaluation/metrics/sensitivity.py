"""Sensitivity-n: do the attributions of random pixels add up to the drop in the score without them?"""

import torch
from torch import Tensor
from torch.nn import Module

from saliency.engine.checks import check_count, check_seed, is_int, is_number, shown
from saliency.engine.maps import safe_divide
from saliency.engine.targets import Target
from saliency.evaluation.metrics.perturbed import Baseline, check_maps, make_baseline, score_versions


def sensitivity_n(
    model: Module,
    input: Tensor,
    target: Target,
    saliency: Tensor,
    n: float = 0.1,
    samples: int = 100,
    baseline: Baseline = "zero",
    seed: int = 0,
    batch_size: int = 32,
) -> Tensor:
    r"""Pearson's correlation (N,) between the attribution of random pixels and the drop in the score without them.

    .. math:: r_n = \operatorname{corr}_S \bigl( \sum_{u \in S} a_{nu}, \; f_{y_n}(x_n) - f_{y_n}(x_{nS}) \bigr)

    over ``samples`` sets S of ``n`` pixels, a number (int) or a share of them (float in (0, 1)); equal sets for all
    cases. f is the raw output. ``saliency`` (N, 1, H, W) are signed attributions, summed over the channels; pixels
    of S become the ``baseline`` of :func:`make_baseline`. 1 is best; 0 where the map or the loss is constant.
    Raises ``ValueError`` for maps that are not finite or do not fit, and for a set that is empty or the whole image.
    Ancona et al., Towards better understanding of gradient-based attribution methods, ICLR 2018.

    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 1))
    >>> x = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    >>> sensitivity_n(model, x, 0, x * model[1].weight.view_as(x), n=2).allclose(torch.ones(1))
    True
    """
    maps = check_maps(input, saliency)
    pixels = maps[0].numel()
    count = _check_size(n, pixels)
    check_count("samples", samples)
    check_seed(seed)
    hidden = make_baseline(input, baseline)
    sets = _random_sets(samples, count, pixels, seed).to(input.device)
    masks = torch.cat((torch.zeros_like(sets[:1]), sets)).view(-1, 1, *input.shape[2:])

    def picture(case: Tensor, version: Tensor) -> Tensor:
        return torch.where(masks[version], hidden[case], input[case])

    scores = score_versions(model, input, target, samples + 1, picture, _raw, batch_size)
    # All sets are equally large, so a constant added to the map changes nothing; this one makes a constant map zero.
    maps = (maps - maps.amin((2, 3), keepdim=True)).flatten(1)
    with torch.autocast(input.device.type, enabled=False):
        attributed = maps @ sets.to(maps.dtype).T
    return _correlation(attributed.to(scores.dtype), scores[:, :1] - scores[:, 1:])


def _raw(output: Tensor) -> Tensor:
    return output


def _check_size(n: object, pixels: int) -> int:
    count = n if is_int(n) else round(n * pixels) if is_number(n) and 0 < n < 1 else 0
    if not 0 < count < pixels:
        raise ValueError(f"n={shown(n)} is not a part of {pixels} pixels; expected a number or a share in (0, 1).")
    return int(count)


def _random_sets(samples: int, count: int, pixels: int, seed: int) -> Tensor:
    """Which pixels each set holds, (samples, pixels) bool; drawn on the CPU, so equal on every device."""
    generator = torch.Generator().manual_seed(int(seed))
    order = torch.rand(samples, pixels, generator=generator, device="cpu", dtype=torch.float32).argsort(1)
    return torch.zeros(samples, pixels, dtype=torch.bool, device="cpu").scatter_(1, order[:, :count], True)


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's correlation of rows; 0 for a row that is constant."""
    a, b = a - a[:, :1], b - b[:, :1]  # exactly 0 where constant, which the mean is not
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return safe_divide((a * b).sum(1), a.norm(dim=1) * b.norm(dim=1)).clamp(-1, 1)
