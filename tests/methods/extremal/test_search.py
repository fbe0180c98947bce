"""The search: its two energies, its steps and its end, next to definitions on a model that is a sum."""

import math

import pytest
import torch

from saliency.methods.extremal.perturbation import MaskGenerator, Perturbation
from saliency.methods.extremal.search import VARIANTS, Search, find_masks

OPTIONS = {
    "perturbation": "fade",
    "max_iter": 5,
    "num_levels": 4,
    "step": 3,
    "sigma": 4,
    "jitter": True,
    "variant": "preserve",
    "seed": None,
    "tolerance": 0,
}
SIZE = (9, 12)


def draw(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X, WEIGHT = draw(2, 3, *SIZE), draw(1, 3, *SIZE, seed=1)


def weighted_sum(tensors, rows):
    """A score that is linear in what is perturbed; kept minus deleted, if there are both."""
    score = (tensors * WEIGHT).sum((1, 2, 3))
    return score if len(score) == len(rows) else score[: len(rows)] - score[len(rows) :]


def find(images=(0, 0, 1), areas=(0.1, 0.3, 0.2), x=X, reward=weighted_sum, **options):
    report = {key: options.pop(key) for key in ("report", "watched") if key in options}
    return find_masks(x, images, areas, reward, Search(**{**OPTIONS, **options}), **report)


def area_term(full, area, weight):
    """The distance of the sorted mask to 0, then 1 on the share of its positions that is asked for."""
    values = sorted(full.flatten().tolist())
    zeros = int(len(values) * (1 - area))
    reference = [0] * zeros + [1] * (len(values) - zeros)
    return -weight * sum((v - r) ** 2 for v, r in zip(values, reference, strict=True)) / len(values)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_search_is_gradient_ascent_with_momentum(variant):
    """Next to ``torch.optim.SGD`` and a written-out objective, for one image."""
    areas = [0.1, 0.3]
    masks, energies = find((0, 0), areas, X[:1], variant=variant)
    generator, perturb = MaskGenerator(SIZE, 3, 4), Perturbation(X[:1], 4, type="fade")
    parameters = torch.ones(2, 1, *generator.shape_in, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([parameters], lr=0.01, momentum=0.9, dampening=0.9)
    for t in range(5):
        mask, full = generator.generate(parameters)
        flip = (3,) if t % 2 == 0 else ()
        kept, deleted = (weighted_sum(perturb.apply(m).flip(flip), range(2)) for m in (mask, 1 - mask))
        # That a deleted score counts the other way round is the reward's own business.
        reward = {"preserve": kept, "delete": deleted, "dual": kept - deleted}[variant]
        values = full.flatten(1).sort(stable=True).values
        count = values.shape[1]
        reference = torch.tensor([[float(i >= int(count * (1 - share))) for i in range(count)] for share in areas])
        area = -300 * 1.0035**t * (values - reference).square().mean(1)
        for row, share in enumerate(areas):
            assert math.isclose(area_term(full[row], share, 300 * 1.0035**t), area[row].item(), rel_tol=1e-9)
        torch.testing.assert_close(energies[:, :, t], torch.stack([reward, area], 1).detach(), rtol=1e-6, atol=1e-8)
        optimizer.zero_grad()
        (-(reward + area).sum()).backward()
        optimizer.step()
        parameters.data.clamp_(0, 1)
    torch.testing.assert_close(masks, mask.detach(), rtol=1e-5, atol=1e-7)


def test_rows_are_searched_for_by_themselves():
    masks, energies = find(max_iter=12)
    assert masks.shape == (3, 1, *SIZE)
    assert energies.shape == (3, 2, 12)
    for row, (image, area) in enumerate([(0, 0.1), (0, 0.3), (1, 0.2)]):
        mask, energy = find((0,), (area,), X[image : image + 1], max_iter=12)
        torch.testing.assert_close(masks[row : row + 1], mask, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(energies[row : row + 1], energy, rtol=1e-6, atol=1e-8)


def test_rows_that_have_converged_leave():
    rows_seen = []

    def reward(tensors, rows):
        rows_seen.append(rows.tolist())
        return 0 * weighted_sum(tensors, rows)

    options = {"max_iter": 80, "tolerance": 1e-3, "jitter": False}
    areas = (1.0, 0.05, 0.5)
    masks, energies = find(areas=areas, reward=reward, **options)
    lengths = [sum(row in rows for rows in rows_seen) for row in range(3)]
    assert lengths[0] == 10  # the mask of area 1 stands still from the start
    assert all(length % 10 == 0 for length in lengths)
    assert len(set(lengths)) > 1
    for row, length in enumerate(lengths):
        padding = energies[row, :, length - 1 : length].expand(-1, 80 - length)
        assert torch.equal(energies[row, :, length:], padding)
        single = find((0,), areas[row : row + 1], X[:1], lambda t, rows: 0 * weighted_sum(t, rows), **options)
        torch.testing.assert_close(masks[row : row + 1], single[0], rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(energies[row : row + 1], single[1], rtol=1e-6, atol=1e-8)


def test_without_tolerance_all_iterations_run():
    seen = []
    find((0,), (1.0,), X[:1], lambda t, rows: (seen.append(1), 0 * weighted_sum(t, rows))[1], max_iter=25)
    assert len(seen) == 25


def test_the_report_is_called_with_a_copy_of_the_energies():
    seen = []

    def report(iteration, energies):
        seen.append((iteration, energies.clone()))
        energies.zero_()

    energies = find(report=report)[1]
    assert [iteration for iteration, _ in seen] == list(range(5))
    assert torch.equal(torch.stack([values for _, values in seen], 2), energies)


def test_flips():
    def flips(**options):
        return Search(**{**OPTIONS, "max_iter": 40, **options}).flips()

    assert flips() == [True, False] * 20
    assert flips(jitter=False) == flips(jitter=False, seed=1) == [False] * 40
    state = torch.get_rng_state()
    assert flips(seed=1) == flips(seed=1) != flips(seed=2)
    assert 10 < sum(flips(seed=1)) < 30
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_for_what_is_perturbed(dtype):
    dtypes = []

    def reward(tensors, rows):
        dtypes.append(tensors.dtype)
        return tensors.float().sum((1, 2, 3))

    masks, energies = find(x=X.to(dtype), reward=reward)
    assert set(dtypes) == {dtype}
    assert masks.dtype == energies.dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"perturbation": "noise"}, r"perturbation='noise' is not a perturbation; expected one of blur, fade\."),
        ({"num_levels": 1}, r"num_levels=1 is not a number of levels; expected an int >= 2\."),
        ({"step": 0}, r"step=0 is not a number of positions; expected an int >= 1\."),
        ({"sigma": -1}, r"sigma=-1 is not a number of positions; expected a number > 0\."),
        ({"variant": "keep"}, r"variant='keep' is not a variant; expected one of preserve, delete, dual\."),
        ({"max_iter": 0}, r"max_iter=0 is not a positive number; expected an int >= 1\."),
        ({"max_iter": True}, r"max_iter=True is not a positive number"),
        ({"seed": 1.5}, r"seed=1\.5 is not a seed; expected an int >= 0\."),
        ({"tolerance": -1}, r"tolerance=-1 is not a valid tolerance; expected a number >= 0\."),
        ({"tolerance": math.nan}, r"tolerance=nan is not a valid tolerance"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        Search(**{**OPTIONS, **options}).check()
