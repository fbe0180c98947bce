"""Means with intervals and paired tests, where the cases of one image belong together."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

RESAMPLES = 2_000
FLIPS = 10_000
EXACT = 13  # up to so many images every assignment of signs is tried: 2^13 < FLIPS
LEVEL = 0.95
CHUNK = 2**22  # random numbers in memory at once
SEED = 0


class Estimate(NamedTuple):
    """A mean, its bootstrap interval (NaN for fewer than two images) and the number of cases behind it."""

    value: float
    low: float
    high: float
    cases: int


NOTHING = Estimate(float("nan"), float("nan"), float("nan"), 0)


class Estimates(NamedTuple):
    """The means over cases and over classes, of all cases and of the difficult ones, and that of every class."""

    cases: Estimate
    classes: Estimate
    difficult_cases: Estimate
    difficult_classes: Estimate
    per_class: dict[int, Estimate]


def estimate_means(scores: Tensor, labels: Tensor, difficult: Tensor, images: Tensor) -> Estimates:
    """Means of scores (N,) whose classes are ``labels`` (N,), ``difficult`` (N,) bool; bootstrap over ``images`` (N,).

    A class without cases is left out of a mean over classes; where nothing is left, the mean is NaN.

    >>> scores, labels, images = torch.tensor([[1.0, 1.0, 0.0], [3, 3, 7], [0, 1, 2]])
    >>> found = estimate_means(scores, labels, difficult=images > 1, images=images)
    >>> round(found.cases.value, 3), found.classes.value, found.per_class[7].value, found.difficult_cases.cases
    (0.667, 0.5, 0.0, 1)
    """
    if not len(scores):
        return Estimates(NOTHING, NOTHING, NOTHING, NOTHING, {})
    names, classes = labels.unique(return_inverse=True)
    _, clusters = images.unique(return_inverse=True)
    size = (2 * len(names), int(clusters.max()) + 1)
    place = torch.stack((classes + len(names) * difficult.long(), clusters))
    values = (scores.double(), torch.ones(len(scores), dtype=torch.double))
    with torch.sparse.check_sparse_tensor_invariants():
        totals = torch.cat([torch.sparse_coo_tensor(place, value, size) for value in values])
    # Of the data itself and then of each resample: sums and counts, of easy and of difficult cases, of each class.
    drawn = torch.cat([totals @ weights for weights in _image_weights(size[1])], 1).T
    sums, counts = drawn.reshape(-1, 2, 2, len(names)).unbind(1)
    found = []
    for kind in (slice(None), slice(1, 2)):
        over_cases = sums[:, kind].sum((1, 2)) / counts[:, kind].sum((1, 2))
        over_classes = (sums[:, kind].sum(1) / counts[:, kind].sum(1)).nanmean(1)
        found += [_estimate(means, int(counts[0, kind].sum())) for means in (over_cases, over_classes)]
    of_class = (sums.sum(1) / counts.sum(1)).T
    cases = counts[0].sum(0).tolist()
    every = {int(name): _estimate(of_class[place], int(cases[place])) for place, name in enumerate(names)}
    return Estimates(found[0], found[1], found[2], found[3], every)


def estimate_box_accuracy(
    overlaps: Tensor, images: Tensor, delta: float | Sequence[float] = 0.5
) -> tuple[Estimate, int]:
    r"""MaxBoxAcc of IoU curves (N, T): the best share of cases that one threshold gives, and that threshold's index.

    .. math:: \max_t \frac1N \sum_n [\mathrm{IoU}_{nt} \ge \delta]

    Of several ``delta`` the mean, and the threshold of the first.
    Choe et al., Evaluating Weakly Supervised Object Localization Methods Right, CVPR 2020. Bootstrap over images.

    >>> best, threshold = estimate_box_accuracy(torch.tensor([[0.6, 0.4], [0.1, 0.9], [0.2, 0.5]]), torch.arange(3))
    >>> round(best.value, 3), threshold
    (0.667, 1)
    """
    _, clusters = images.unique(return_inverse=True)
    number = int(clusters.max()) + 1
    counts = torch.zeros(number, 1, dtype=torch.double).index_add_(0, clusters, torch.ones(len(clusters), 1).double())
    best, places = [], []
    for least in delta if isinstance(delta, Sequence) else (delta,):
        hits = torch.zeros(number, overlaps.shape[1], dtype=torch.double)
        hits.index_add_(0, clusters, (overlaps >= least).double())
        drawn = torch.cat([(weights.T @ hits) / (weights.T @ counts) for weights in _image_weights(number)])
        found = drawn.max(1)
        best.append(found.values)
        places.append(int(found.indices[0]))
    return _estimate(torch.stack(best).mean(0), len(overlaps)), places[0]


def paired_p_values(differences: Tensor, images: Tensor) -> Tensor:
    r"""Two-sided p-values (P,) of paired differences (N, P), under random signs that the cases of an image share.

    .. math:: p = P(|\sum_i \sigma_i d_i| \ge |\sum_i d_i|),\quad d_i = \sum_{n \in i} d_n,\ \sigma_i = \pm 1

    It holds for any score, hits and misses too, if the two methods are exchangeable on an image. Exact for few images,
    else from random signs, with the observed one among them. A difference of 0 stands for a case that one has not.

    >>> paired_p_values(torch.ones(3, 1), torch.arange(3))  # 2 of the 8 assignments of signs are as extreme
    tensor([0.2500], dtype=torch.float64)
    """
    _, clusters = images.unique(return_inverse=True)
    sums = torch.zeros(int(clusters.max()) + 1 if len(clusters) else 0, differences.shape[1], dtype=torch.double)
    sums.index_add_(0, clusters, differences.double())
    sums = sums[(sums != 0).any(1)]
    # Sums of the same numbers in another order are equal only up to rounding.
    observed = sums.sum(0).abs() - 1e-9 * sums.abs().sum(0)
    extreme, tried = torch.zeros(sums.shape[1], dtype=torch.double), 0
    for signs in _sign_chunks(len(sums)):
        extreme += ((signs @ sums).abs() >= observed).sum(0)
        tried += len(signs)
    return extreme / tried if len(sums) <= EXACT else (extreme + 1) / (tried + 1)


def holm(p_values: Tensor) -> Tensor:
    """P-values (P,) adjusted for their number (Holm, 1979): all that stay below 0.05 are right at once with 95 %.

    >>> holm(torch.tensor([0.01, 0.04, 0.03]))
    tensor([0.0300, 0.0600, 0.0600])
    """
    ordered, order = p_values.sort(stable=True)
    factors = torch.arange(len(p_values), 0, -1, dtype=p_values.dtype)
    adjusted = torch.empty_like(p_values)
    adjusted[order] = torch.cummax((ordered * factors).clamp(max=1), 0).values if len(ordered) else ordered
    return adjusted


def _image_weights(images: int) -> Iterator[Tensor]:
    """How often each image counts, (images, 1) ones for the data itself; then in each resample, (images, resamples).

    In pieces, and always the same draws. Fewer than two images are not resampled.
    """
    yield torch.ones(images, 1, dtype=torch.double)
    if images < 2:
        return
    generator = torch.Generator().manual_seed(SEED)
    step = max(1, CHUNK // images)
    for start in range(0, RESAMPLES, step):
        drawn = torch.randint(images, (min(step, RESAMPLES - start), images), generator=generator)
        weights = torch.zeros(drawn.shape, dtype=torch.double)
        yield weights.scatter_add_(1, drawn, torch.ones_like(weights)).T


def _sign_chunks(images: int) -> Iterator[Tensor]:
    """Signs (assignments, images), in pieces: every assignment for few images, else FLIPS random ones."""
    if images <= EXACT:
        yield 1.0 - 2.0 * (torch.arange(2**images)[:, None] >> torch.arange(images) & 1).double()
        return
    generator = torch.Generator().manual_seed(SEED)
    step = max(1, CHUNK // images)
    for start in range(0, FLIPS, step):
        bits = torch.randint(2, (min(step, FLIPS - start), images), generator=generator, dtype=torch.int8)
        yield 1.0 - 2.0 * bits.double()


def _estimate(drawn: Tensor, cases: int) -> Estimate:
    """An estimate of a statistic on the data, which comes first, and on its resamples."""
    if len(drawn) < 2 or not drawn[1:].isfinite().any():
        return Estimate(float(drawn[0]), float("nan"), float("nan"), cases)
    tail = (1 - LEVEL) / 2
    low, high = drawn[1:].nanquantile(drawn.new_tensor([tail, 1 - tail])).tolist()
    return Estimate(float(drawn[0]), low, high, cases)
