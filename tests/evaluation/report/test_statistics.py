"""Means, intervals and tests against loops over their definitions."""

import math
from itertools import product

import numpy as np
import pytest
import torch

from saliency.evaluation.metrics import localisation
from saliency.evaluation.report.statistics import (
    EXACT,
    RESAMPLES,
    estimate_box_accuracy,
    estimate_means,
    holm,
    paired_p_values,
)


def made_cases(number: int = 40, images: int = 12, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(number, generator=generator, dtype=torch.double)
    labels, image = (torch.randint(size, (number,), generator=generator) for size in (4, images))
    return scores, labels, torch.rand(number, generator=generator) < 0.4, image


def loop_means(cases, hard):
    """Over cases and over classes."""
    own = [(score, label) for score, label, difficult in cases if difficult or not hard]
    if not own:
        return math.nan, math.nan
    per_class = [np.mean([s for s, name in own if name == label]) for label in {label for _, label in own}]
    return np.mean([score for score, _ in own]), np.mean(per_class)


def test_means_and_intervals_are_those_of_a_loop_over_resampled_images():
    scores, labels, difficult, images = made_cases()
    found = estimate_means(scores, labels, difficult, images)
    names = images.unique().tolist()
    cases = list(zip(scores.tolist(), labels.tolist(), difficult.tolist(), images.tolist(), strict=True))
    of_image = [[case[:3] for case in cases if case[3] == name] for name in names]
    drawn = torch.randint(len(names), (RESAMPLES, len(names)), generator=torch.Generator().manual_seed(0)).tolist()
    resampled = [[case for place in row for case in of_image[place]] for row in drawn]
    for hard, pair in ((False, found[:2]), (True, found[2:4])):
        everything = [loop_means(sample, hard) for sample in resampled]
        for which, estimate in enumerate(pair):
            assert estimate.value == pytest.approx(loop_means([case[:3] for case in cases], hard)[which])
            low, high = np.nanquantile([means[which] for means in everything], [0.025, 0.975])
            assert (estimate.low, estimate.high) == (pytest.approx(low), pytest.approx(high))
            assert estimate.cases == (int(difficult.sum()) if hard else len(cases))
    for label, estimate in found.per_class.items():
        own = scores[labels == label]
        assert (estimate.value, estimate.cases) == (pytest.approx(own.mean().item()), len(own))
        assert estimate.low <= estimate.value <= estimate.high


def test_an_interval_is_as_wide_as_the_normal_one_and_knows_that_the_cases_of_an_image_go_together():
    hits = (torch.rand(800, generator=torch.Generator().manual_seed(3)) < 0.7).double()
    none, number = torch.zeros(800, dtype=torch.bool), torch.arange(800)
    alone = estimate_means(hits, none.long(), none, number).cases
    expected = 2 * 1.96 * math.sqrt(alone.value * (1 - alone.value) / 800)
    assert alone.high - alone.low == pytest.approx(expected, rel=0.1)
    # Every case four times says nothing new: as long as the four are of one image, the interval stays what it was.
    again = [values.repeat(4) for values in (hits, none.long(), none, number)]
    assert estimate_means(*again).cases[:3] == pytest.approx(alone[:3])
    wrong = estimate_means(*again[:3], torch.arange(3200)).cases
    assert wrong.high - wrong.low == pytest.approx(expected / 2, rel=0.1)


def test_what_there_is_no_mean_of_is_nan_and_not_zero():
    nothing = estimate_means(torch.zeros(0), torch.zeros(0).long(), torch.zeros(0) > 0, torch.zeros(0).long())
    assert all(math.isnan(value) for found in nothing[:4] for value in found[:3])
    assert nothing.per_class == {}
    one = estimate_means(torch.ones(2), torch.tensor([5, 9]), torch.zeros(2) > 0, torch.zeros(2).long())
    assert (one.cases.value, one.classes.value) == (1, 1)
    assert math.isnan(one.cases.low)  # one image says nothing about others
    assert math.isnan(one.difficult_cases.value)


def test_box_accuracy_is_that_of_the_best_threshold():
    generator = torch.Generator().manual_seed(1)
    overlaps, images = torch.rand(30, 7, generator=generator), torch.randint(9, (30,), generator=generator)
    found, place = estimate_box_accuracy(overlaps, images)
    shares = [sum(row[t] >= 0.5 for row in overlaps.tolist()) / 30 for t in range(7)]
    assert found.value == pytest.approx(max(shares))
    assert place == shares.index(max(shares))
    assert found.value == pytest.approx(localisation.max_box_accuracy(overlaps).item())
    assert found.low <= found.value <= found.high


def loop_p_value(sums):
    extreme = [
        abs(sum(s * d for s, d in zip(signs, sums, strict=True))) for signs in product((1, -1), repeat=len(sums))
    ]
    return sum(value >= abs(sum(sums)) - 1e-9 for value in extreme) / len(extreme)


def test_p_values_are_exact_for_few_images_and_the_cases_of_an_image_share_their_sign():
    generator = torch.Generator().manual_seed(2)
    differences, images = torch.randn(25, 6, generator=generator), torch.randint(8, (25,), generator=generator)
    sums = [[differences[images == i, pair].sum().item() for i in images.unique()] for pair in range(6)]
    assert paired_p_values(differences, images).tolist() == pytest.approx([loop_p_value(own) for own in sums])


@pytest.mark.parametrize(("wins", "losses"), [(6, 0), (5, 2), (4, 4), (9, 1)])
def test_for_hits_and_misses_it_is_the_exact_test_of_mcnemar(wins, losses):
    differences = torch.tensor([1.0] * wins + [-1.0] * losses + [0.0] * 20)[:, None]
    number = wins + losses
    tail = sum(math.comb(number, k) for k in range(min(wins, losses) + 1)) / 2**number
    assert paired_p_values(differences, torch.arange(len(differences))).item() == pytest.approx(min(1, 2 * tail))


def test_p_values_of_many_images_come_near_the_exact_ones():
    differences = torch.randn(EXACT + 3, 3, generator=torch.Generator().manual_seed(4)) + torch.tensor([0.0, 0.4, 0.8])
    found = paired_p_values(differences, torch.arange(len(differences)))
    signs = 1 - 2.0 * (torch.arange(2 ** len(differences))[:, None] >> torch.arange(len(differences)) & 1)
    exact = ((signs @ differences).abs() >= differences.sum(0).abs() - 1e-5).double().mean(0)
    assert found.tolist() == pytest.approx(exact.tolist(), abs=0.02)
    sure = paired_p_values(torch.ones(60, 1), torch.arange(60)).item()
    assert 0 < sure < 1e-3  # the observed signs are among those tried: never 0


def test_equal_scores_cannot_be_told_apart():
    assert paired_p_values(torch.zeros(5, 2), torch.arange(5)).tolist() == [1, 1]
    assert paired_p_values(torch.zeros(0, 2), torch.zeros(0).long()).tolist() == [1, 1]


def test_holm_by_hand():
    assert holm(torch.tensor([0.01, 0.01, 0.03, 0.005])).tolist() == pytest.approx([0.03, 0.03, 0.03, 0.02])
    assert holm(torch.tensor([0.6, 0.7])).tolist() == [1, 1]
    assert holm(torch.zeros(0)).tolist() == []


def test_nothing_hangs_on_the_global_stream_or_moves_it():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = estimate_means(*made_cases()), paired_p_values(made_cases()[0][:, None], torch.arange(40))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    second = estimate_means(*made_cases()), paired_p_values(made_cases()[0][:, None], torch.arange(40))
    assert first[0] == second[0]
    assert torch.equal(first[1], second[1])
