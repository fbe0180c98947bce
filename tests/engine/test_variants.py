"""Scores of variants: of each alone, whatever the chunks; on the input and behind a layer; without waiting."""

import pytest
import torch
from torch import Tensor

from saliency.engine.call import make_call
from saliency.engine.site import make_site
from saliency.engine.state import evaluating
from saliency.engine.targets import Targets
from saliency.engine.variants import in_order, replacing_input, replacing_layer, scores
from tests import cases

ROWS = torch.tensor([1, 0, 0, 1, 0, 1, 1])
TARGETS = [
    2,
    [1, 3],
    [[0, 1, 2], [3, 3, 0]],
    (1,),
    [(1,), (2,)],
    torch.randn(2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64),
    lambda output: output[:, 1] * 2,
    lambda output: output[:, 1:3],
    [lambda row: row[0], lambda row: row.sum()],
]


def factors(x: Tensor) -> Tensor:
    return torch.linspace(0, 2, len(ROWS), dtype=x.dtype).view(-1, *[1] * (x.ndim - 1))


def one_by_one(run, x, targets):
    found = []
    for row, factor in zip(ROWS, factors(x), strict=True):
        ((at, output),) = run(x[row][None] * factor, row[None])
        assert at.tolist() == [0]
        found.append(targets.rows(row[None]).scores(output))
    return torch.cat(found)


@pytest.mark.parametrize("size", [None, 1, 3, 100])
@pytest.mark.parametrize("target", TARGETS, ids=cases.shown)
@pytest.mark.parametrize("layer", ["", "relu"])
def test_scores_are_those_of_each_variant_alone(layer, target, size):
    case = cases.RESIDUAL
    model, targets = case.model(), Targets(target, 2)
    call = make_call(model, case.input())
    with evaluating(model):
        x, run = replacing_layer(call, make_site(call, layer)) if layer else replacing_input(call, 0)
        found = scores(run, targets, ROWS, lambda index: x[ROWS[index]] * factors(x)[index], size)
        torch.testing.assert_close(found, one_by_one(run, x, targets))
    assert found.shape == (7, found.shape[1])


def test_variants_are_made_chunk_by_chunk():
    model = cases.IN_PLACE.model()
    call = make_call(model, cases.IN_PLACE.input())
    made, steps, rows = [], [], []
    model.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    with evaluating(model):
        x, run = replacing_input(call, 0)

        def variants(index: Tensor) -> Tensor:
            made.append(index.tolist())
            return x[ROWS[index]]

        scores(run, Targets(1, 2), ROWS, variants, 3, lambda *step: steps.append(step))
    assert made == [[0, 1, 2], [3, 4, 5], [6]]
    assert steps == [(3, 7), (6, 7), (7, 7)]
    assert rows == [3, 3, 1]


@pytest.mark.parametrize("target", [1, [[0, 1], [2, 3]], (2,), lambda output: output[:, :2]], ids=cases.shown)
@pytest.mark.parametrize("layer", ["", "features.3"])
def test_nothing_waits_for_the_device(layer, target):
    model = cases.IN_PLACE.model(torch.float32).to("meta")
    call = make_call(model, torch.zeros(2, 3, 11, 14, device="meta"))
    with evaluating(model):
        x, run = replacing_layer(call, make_site(call, layer)) if layer else replacing_input(call, 0)
        of_rows = ROWS.to("meta")
        found = scores(run, Targets(target, 2), ROWS, lambda index: x[of_rows[: len(index)]], 4)
    assert found.is_meta
    assert len(found) == 7


def test_samples_take_turns():
    model = cases.FUNCTIONAL.model()
    call = make_call(model, cases.FUNCTIONAL.input())
    rows = []

    model.classifier.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    with evaluating(model):
        x, run = replacing_layer(call, make_site(call, "conv2"))
        rows.clear()
        scores(run, Targets(1, 2), ROWS, lambda index: x[ROWS[index]], None)
    assert rows == [3, 4]  # of the first sample, then of the second


def test_in_order():
    parts = [(torch.tensor([3, 0]), torch.tensor([[3.0], [0.0]])), (torch.tensor([1, 2]), torch.tensor([[1.0], [2.0]]))]
    assert in_order(parts).flatten().tolist() == [0, 1, 2, 3]


def test_replacing_the_input_takes_the_other_arguments_along():
    case = cases.TWO_INPUTS
    model, (x, y) = case.model(), case.input()
    rows = torch.tensor([1, 0, 1])
    perturbed = torch.randn(3, *x.shape[1:], dtype=x.dtype)
    with evaluating(model):
        found, run = replacing_input(make_call(model, (x, y)), 0)
        ((at, output),) = run(perturbed, rows)
        assert torch.equal(found, x)
        assert at.tolist() == [0, 1, 2]
        assert torch.equal(output, model(perturbed, y[rows]))


def test_replacing_a_layer_of_several_samples():
    case = cases.TRANSFORMER
    model, x = case.model(), case.input()
    rows = torch.tensor([1, 0, 1])
    call = make_call(model, x)
    with evaluating(model):
        tokens, run = replacing_layer(call, make_site(call, "blocks.0"))
        assert tokens.shape == (2, 21, 6)
        for at, output in run(tokens[rows], rows):
            torch.testing.assert_close(output, model(x[rows[at]]))
