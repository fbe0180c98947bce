"""Targets: what is selected, in all the forms that a target may have; and what is refused, with which words."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

import saliency
from saliency import get_backward_gradient, get_pointing_gradient
from saliency.engine.checks import describe
from saliency.engine.targets import Targets, class_indices
from tests import cases

SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))
FEW = settings(max_examples=40, deadline=None)


@FEW
@given(SHAPES, st.data())
def test_an_index_selects_its_channel_everywhere(shape, data):
    for ndim in (2, 3, 4):
        output = torch.randn(shape[:ndim])
        index = data.draw(st.lists(st.integers(0, shape[1] - 1), min_size=shape[0], max_size=shape[0]))
        expected = torch.zeros(shape[:ndim])
        for n, c in enumerate(index):
            expected[n, c] = 1
        for target in (index, np.array(index), torch.tensor(index), torch.tensor(index, dtype=torch.uint8)):
            assert torch.equal(get_backward_gradient(output, target), expected)
        same = torch.zeros(shape[:ndim])
        same[:, index[0]] = 1
        for target in (index[0], np.int64(index[0]), np.array(index[0]), torch.tensor(index[0]), index[:1]):
            assert torch.equal(get_backward_gradient(output, target), same)


@FEW
@given(SHAPES, st.data())
def test_a_tuple_selects_one_entry(shape, data):
    for ndim in (2, 3, 4):
        output = torch.randn(shape[:ndim])
        entry = st.tuples(*(st.integers(0, size - 1) for size in shape[1:ndim]))
        rows = data.draw(st.lists(entry, min_size=shape[0], max_size=shape[0]))
        expected, same = torch.zeros(shape[:ndim]), torch.zeros(shape[:ndim])
        for n, row in enumerate(rows):
            expected[(n, *row)] = 1
            same[(n, *rows[0])] = 1
        assert torch.equal(get_backward_gradient(output, rows), expected)
        assert torch.equal(get_backward_gradient(output, rows[0]), same)


def test_the_gradient_itself_is_taken_as_it_is():
    output = torch.randn(2, 3, dtype=torch.float64)
    gradient = torch.randn(2, 3, requires_grad=True)
    found = get_backward_gradient(output, gradient)
    assert not found.requires_grad
    assert found.dtype == torch.float64
    assert torch.equal(found.float(), gradient.detach())


def test_none_is_one_score_per_sample():
    for shape in [(3,), (3, 1), (3, 1, 1)]:
        assert torch.equal(get_backward_gradient(torch.randn(shape), None), torch.ones(shape))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_the_gradient_has_the_outputs_dtype(dtype):
    for target in (0, [1, 0], (1,), torch.ones(2, 3)):
        assert get_backward_gradient(torch.zeros(2, 3, dtype=dtype), target).dtype == dtype


BAD_TARGETS = [
    (3, "out of range: the output has classes 0 to 2"),
    (-1, "out of range: the output has classes 0 to 2"),
    ([0, 3], "out of range"),
    ([0, -1], "out of range"),
    (2**70, ""),
    ([0, 1, 2], "the batch holds 2 samples"),
    (torch.zeros(3, dtype=torch.long), "the batch holds 2 samples"),
    ([], "[]"),
    (1.0, "class index"),
    (float("nan"), "class index"),
    (np.float64(1), "shape ()"),
    (True, "bool"),
    (torch.tensor([True, False]), "bool"),
    (np.array([True, False]), "bool"),
    (1j, "class index"),
    ("dog", "'dog'"),
    (["dog", "cat"], "dog"),
    ({"class": 1}, "class"),
    ({1}, "{1}"),
    (b"1", ""),
    ((3,), "out of range"),
    ((-1,), "out of range"),
    ((0, 0), "(2, 3)"),
    ((), "(2, 3)"),
    (("dog",), "dog"),
    ([(0,)], "the batch holds 2 samples"),
    ([(0,), (0, 1)], "(2, 3)"),
    ([(0,), 1], ""),
    ([(0,), (3,)], "out of range"),
    ([(0.5,), (1,)], ""),
    ((1.0,), ""),
    ((True,), ""),
    (None, "the output has shape (2, 3)"),
    (torch.ones(3), "(3,)"),
    (torch.ones(3, 3), "(3, 3)"),
    (torch.ones(2, 3, 1), "(2, 3, 1)"),
    (torch.zeros(2, 0, dtype=torch.long), "is empty"),
    (np.zeros((2, 0), int), "is empty"),
    ([[], []], ""),
    ([[0, 1], [2]], "different length"),
    ([[0, 1]] * 3, "the batch holds 2 samples"),
    ([[0, 3], [0, 1]], "out of range"),
    ([[True, False], [False, True]], "bool"),
    (torch.zeros(2, 1, 1, dtype=torch.long), "(2, 1, 1)"),
    (lambda output: output[None], "(1, 2, 3)"),
    (lambda output: output[:, :, None], "(2, 3, 1)"),
    (lambda output: output[:, :0], "(2, 0)"),
    ([len], "the batch holds 2 samples"),
    ([lambda row: 1.0] * 2, "float"),
    ([lambda row: row] * 2, "(3,)"),
    (lambda output: None, "NoneType"),
    (lambda output: 1.0, "float"),
    (lambda output: output[:1, 0], "(1,)"),
    (lambda output: output[:, 0].sum(), "()"),
]


class Scores(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2


@pytest.mark.parametrize(("target", "words"), BAD_TARGETS, ids=lambda value: cases.shown(value)[:40])
def test_unusable_targets(target, words):
    """The message begins with the user's own words, says what is wrong, and ends with what is expected."""
    with pytest.raises(ValueError, match=r"(?s)^target=.*expected .*\.$") as error:
        saliency.gradient(Scores(), torch.zeros(2, 3), target)
    message = str(error.value)
    assert words in message
    words = describe(target) if isinstance(target, Tensor) else repr(target)
    assert message.startswith(f"target={words}") or isinstance(target, (list, np.ndarray, np.generic))
    assert "None for one score per sample" in message


def test_a_class_of_an_output_without_classes():
    for shape in [(2,), ()]:
        with pytest.raises(ValueError, match=r"target=1 .*pass None"):
            get_backward_gradient(torch.zeros(shape), 1)


def test_k_columns_are_k_pairs():
    columns = torch.tensor([[1, 2, 3], [4, 5, 6]])
    for target in (columns, columns.tolist(), columns.numpy()):
        columns = [column for _, column in Targets(target, 2).select(torch.zeros(2, 7))]
        assert [column.tolist() for column in columns] == [[1, 4], [2, 5], [3, 6]]
    gradient = torch.ones(2, 3)
    for target in (1, [1, 2], (1,), gradient, torch.tensor([1, 2]), [(1,), (2,)]):
        ((_, found),) = Targets(target, 2).select(torch.zeros(2, 3))
        assert found is target or torch.equal(found, target)


def test_select_scores():
    scores, other = torch.ones(2, 3), torch.zeros(2, 3)
    for output in (
        scores,
        (scores, other),
        [scores],
        {"logits": scores},
        {"out": scores, "aux": other},
        (scores, None),
    ):
        ((found, target),) = Targets(1, 2).select(output)
        assert found is scores
        assert target == 1
    ((found, target),) = Targets(lambda output: output["b"][:, 0], 2).select({"a": other, "b": scores})
    assert found.tolist() == [1, 1]
    assert target is None


@pytest.mark.parametrize("output", [{"a": torch.ones(2, 3)}, (), None, 3.0, "text", (None, torch.ones(2, 3))], ids=str)
def test_outputs_of_which_nothing_can_be_chosen(output):
    with pytest.raises(ValueError, match=r"target=1 does not apply to .*function.*expected"):
        Targets(1, 2).select(output)


def test_class_indices_broadcast_over_the_output():
    output = torch.zeros(2, 3, 4, 5)
    assert class_indices(output, 1).shape == (2, 1, 1, 1)
    assert class_indices(output, [2, 0]).shape == (2, 1, 1, 1)
    assert class_indices(output, torch.tensor([2, 0], dtype=torch.int16)).dtype == torch.long


@FEW
@given(SHAPES, st.data(), st.booleans())
def test_pointing_gradient_is_a_softmax_over_positions(shape, data, normalize):
    output = torch.randn(shape, dtype=torch.float64)
    index = data.draw(st.lists(st.integers(0, shape[1] - 1), min_size=shape[0], max_size=shape[0]))
    found = get_pointing_gradient(output, index, normalize)
    for n in range(shape[0]):
        total = sum(math.exp(v) for v in output[n, index[n]].flatten().tolist()) if normalize else 1
        for c in range(shape[1]):
            for i in range(shape[2]):
                for j in range(shape[3]):
                    expected = math.exp(output[n, c, i, j]) / total if c == index[n] else 0
                    assert found[n, c, i, j].item() == pytest.approx(expected, rel=1e-12)


def test_pointing_gradient_of_batches():
    output = torch.randn(3, 4, 2, 5, dtype=torch.float64)
    together = get_pointing_gradient(output, [1, 0, 3])
    assert together.sum((1, 2, 3)).tolist() == pytest.approx([1, 1, 1])
    for n, c in enumerate([1, 0, 3]):
        assert torch.equal(together[n : n + 1], get_pointing_gradient(output[n : n + 1], c))
    assert torch.equal(get_pointing_gradient(torch.randn(2, 3), 1), get_backward_gradient(torch.zeros(2, 3), 1))
    large = get_pointing_gradient(torch.full((1, 1, 2, 2), 1e4), 0)
    assert large.tolist() == [[[[0.25, 0.25], [0.25, 0.25]]]]


@pytest.mark.parametrize("target", [4, [0, 1, 2], None, 1.5, True])
def test_pointing_gradient_refuses_what_is_no_class(target):
    with pytest.raises(ValueError, match="target="):
        get_pointing_gradient(torch.zeros(2, 4, 3, 3), target)


def test_pointing_gradient_in_the_driver():
    case = cases.DENSE
    found = saliency.saliency(case.model(), case.input(), 2, "conv1", get_backward_gradient=get_pointing_gradient)
    output = case.model()(case.input()).detach()
    gradient = torch.zeros_like(output)
    gradient[:, 2] = output[:, 2].flatten(1).softmax(1).view_as(output[:, 2])
    torch.testing.assert_close(found, saliency.gradient(case.model(), case.input(), gradient, "conv1"))


FORMS = [1, [1, 1], (1,), [(1,), (1,)], torch.tensor([[0.0, 1.0, 0.0]] * 2), torch.tensor([[1], [1]]), None]


@pytest.mark.parametrize("target", FORMS, ids=cases.shown)
def test_scores_are_what_the_target_selects(target):
    output = torch.tensor([[-torch.inf, 2.0, torch.inf], [4.0, 5.0, 6.0]])
    scores = Targets(target, 2).scores(output[:, 1] if target is None else output)
    assert scores.tolist() == [[2], [5]]


def test_scores_of_functions():
    output = {"out": torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), "aux": torch.zeros(2, 9)}
    assert Targets(lambda output: output["aux"][:, 1], 2).scores(output).tolist() == [[0], [0]]
    assert Targets(lambda output: output["out"][:, 1:], 2).scores(output).tolist() == [[2, 3], [5, 6]]
    seen = []

    def first(row):
        seen.append(row.shape)
        return row[0]

    assert Targets([first, lambda row: row.sum()[None]], 2).scores(output).tolist() == [[1], [15]]
    assert seen == [(3,)]


@FEW
@given(SHAPES, st.integers(1, 5), st.data())
def test_scores_of_k_targets_are_those_of_each(shape, k, data):
    output = torch.randn(shape, dtype=torch.float64)
    classes = st.lists(st.integers(0, shape[1] - 1), min_size=k, max_size=k)
    index = torch.tensor([data.draw(classes) for _ in range(shape[0])])
    assume(not (k == shape[1] > 2 and int(index.max()) == 1))  # these read like labels
    expected = [[sum(output[n, c].flatten().tolist()) for c in row.tolist()] for n, row in enumerate(index)]
    for target in (index, index.tolist(), index.numpy(), index.int()):
        found = Targets(target, shape[0])
        assert len(found) == k
        torch.testing.assert_close(found.scores(output), torch.tensor(expected, dtype=torch.float64))


FUNCTIONS = [lambda output: output[:, 1], [lambda row: row[1]] * 2]


@pytest.mark.parametrize("target", [*FORMS[:-1], [[1, 0], [2, 2]], *FUNCTIONS], ids=cases.shown)
def test_scores_have_the_gradients_of_the_pairs(target):
    """What is handed to ``get_backward_gradient`` is the derivative of what ``scores`` says."""
    output = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    targets = Targets(target, 2)
    for k, (scores, y) in enumerate(targets.select(output)):
        of_pair = torch.autograd.grad(scores, output, get_backward_gradient(scores, y), retain_graph=True)
        assert torch.equal(*of_pair, *torch.autograd.grad(targets.scores(output)[:, k].sum(), output))


def test_a_function_is_called_once_for_all_its_scores():
    seen = []

    def function(output):
        seen.append(len(output))
        return output * 2

    targets = Targets(function, 2)
    output = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    pairs = targets.select(output)
    assert seen == [2]
    assert [scores.tolist() for scores, y in pairs] == [[2, 8], [4, 10], [6, 12]]
    assert [y for scores, y in pairs] == [None] * 3


def test_the_function_that_makes_a_gradient_is_given_the_target_as_it_was_said():
    output = torch.zeros(2, 3)
    for target in (1, [1, 0], (1,), [(1,), (0,)], None):
        ((scores, y),) = Targets(target, 2).select(output)
        assert scores is output
        assert y is target
    pairs = Targets(np.array([[1, 0], [2, 2]]), 2).select((output, None))
    assert [y.tolist() for _, y in pairs] == [[1, 2], [0, 2]]


def test_rows_of_a_target_follow_their_samples():
    output = torch.arange(12.0).view(2, 3, 2)
    index = torch.tensor([1, 1, 0])
    for target in (
        *(2, [2, 0], (2, 1), [(2, 1), (0, 0)], [[0, 1], [2, 2]], torch.randn(2, 3, 2)),
        *(lambda output: output[:, 0, 0], lambda output: output[:, 0], [lambda row: row[0, 0], lambda row: row[2, 1]]),
    ):
        targets = Targets(target, 2)
        rows = targets.rows(index)
        assert rows.samples == 3
        assert torch.equal(rows.scores(output[index]), targets.scores(output)[index])
        for (scores, y), (all_scores, all_y) in zip(rows.select(output[index]), targets.select(output), strict=True):
            expected = get_backward_gradient(all_scores, all_y)[index]
            assert torch.equal(get_backward_gradient(scores, y), expected)


def test_keys_are_equal_for_equal_classes():
    same = (3, [3, 3], torch.tensor([3, 3]), np.array([[3], [3]]), np.int64(3))
    assert {Targets(target, 2).key for target in same} == {((3, 3),)}
    assert Targets([[3, 4], [5, 6]], 2).key == ((3, 5), (4, 6))
    for target in (None, (3,), [(3,), (3,)], torch.ones(2, 3), len, [len, len]):
        assert Targets(target, 2).key is None


@pytest.mark.parametrize("target", [*FORMS, [1, 0], [[1, 2, 0], [0, 2, 1]], *FUNCTIONS], ids=cases.shown)
def test_nothing_waits_for_the_device_of_the_output(target):
    """On the meta device, whatever needs a value raises."""
    output = torch.zeros(2, 1 if target is None else 3, device="meta", requires_grad=True)
    targets = Targets(target, 2).rows(torch.tensor([0, 1, 1]))
    chunk = output[[0, 1, 1]]
    assert targets.scores(chunk).is_meta
    for scores, y in targets.select(chunk):
        assert get_backward_gradient(scores, y).is_meta
    with pytest.raises(ValueError, match="out of range"):
        Targets([[1], [3]], 2).scores(output)


def test_an_output_without_the_rows_of_the_batch():
    for target in (1, None, (1,), torch.ones(2, 3), [lambda row: row[0]] * 2):
        with pytest.raises(ValueError, match=r"(?s)target=.* needs .*2 rows.* shape \(1, 3\).*expected"):
            Targets(target, 2).scores(torch.zeros(1, 3))
