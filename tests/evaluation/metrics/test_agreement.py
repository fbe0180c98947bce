"""Rank correlation, beside ranks that are counted."""

import math

import pytest
import torch

from saliency.evaluation.metrics.agreement import rank_correlation


def loop_rank_correlation(a, b):
    """Pearson's correlation of the ranks; equal values have the mean of the places that they fill."""
    ranks = [
        [sum(other < value for other in values) + (values.count(value) + 1) / 2 for value in values]
        for values in (a.flatten().tolist(), b.flatten().tolist())
    ]
    means = [sum(rank) / len(rank) for rank in ranks]
    centred = [[value - mean for value in rank] for rank, mean in zip(ranks, means, strict=True)]
    spread = math.prod(sum(value**2 for value in rank) for rank in centred) ** 0.5
    return sum(x * y for x, y in zip(*centred, strict=True)) / spread if spread else 0.0


@pytest.mark.parametrize("values", [2, 5, 1000])
def test_as_in_plain_loops(values):
    a, b = torch.randint(-values, values, (2, 6, 1, 7, 9)).float()
    b[:2] += a[:2]
    expected = torch.tensor([loop_rank_correlation(*pair) for pair in zip(a, b, strict=True)])
    torch.testing.assert_close(rank_correlation(a, b), expected)
    expected = torch.tensor([loop_rank_correlation(*pair) for pair in zip(a.abs(), b.abs(), strict=True)])
    torch.testing.assert_close(rank_correlation(a, b, absolute=True), expected)


def test_without_ties_as_the_formula_of_squared_differences():
    order = torch.stack([torch.randperm(60) for _ in range(4)])
    ranks = torch.arange(60).expand(4, 60)
    expected = 1 - 6 * ((order - ranks) ** 2).sum(1) / (60 * (60**2 - 1))
    torch.testing.assert_close(rank_correlation(order.float().view(4, 1, 6, 10), ranks.view(4, 1, 6, 10)), expected)


@pytest.mark.parametrize("size", [(2, 1), (7, 7), (224, 224)])
def test_a_map_and_itself(size):
    a = torch.randn(3, 1, *size)
    assert rank_correlation(a, a).tolist() == [1, 1, 1]
    assert rank_correlation(a, a**3 * 2 + 5 * a - 4).tolist() == [1, 1, 1]  # order is all that counts
    assert rank_correlation(a, -a).tolist() == [-1, -1, -1]
    assert rank_correlation(a, -a, absolute=True).tolist() == [1, 1, 1]


def test_a_constant_map_orders_nothing():
    a, b = torch.ones(2, 1, 3, 3), torch.rand(2, 1, 3, 3)
    assert rank_correlation(a, b).tolist() == rank_correlation(b, a).tolist() == [0, 0]
    assert rank_correlation(a, a).tolist() == [0, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64])
def test_dtypes(dtype):
    a, b = torch.randint(0, 9, (2, 2, 1, 4, 5)).to(dtype)
    result = rank_correlation(a, b)
    assert result.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(result, rank_correlation(a.double(), b.double()).to(result.dtype))


def test_what_is_no_pair_is_refused():
    a = torch.rand(2, 1, 3, 3)
    for b in (a[:1], a[..., :2], a[:, 0]):
        with pytest.raises(ValueError, match="are not a pair"):
            rank_correlation(a, b)
    for value in (torch.nan, torch.inf):
        with pytest.raises(ValueError, match="expected finite maps"):
            rank_correlation(a, a * value)


def test_views():
    a = torch.rand(2, 3, 8, 9)
    assert rank_correlation(a[:, 1:2], a[:, 1:2].clone()).tolist() == [1, 1]
    assert rank_correlation(a.mT[:, :1], a[:, :1].mT.clone()).tolist() == [1, 1]
