"""The cases of an image, and which of them are difficult, by counting pixels."""

import json
from functools import partial

import pytest
import torch

from saliency.evaluation.cases import (
    Annotation,
    Instance,
    class_boxes,
    class_mask,
    describe,
    is_difficult,
    labels_of,
    outputs_of,
    read_class_map,
)
from saliency.evaluation.datasets import load_dataset


def stripe(rows: int, size=(8, 8)) -> torch.Tensor:
    mask = torch.zeros(size, dtype=torch.bool)
    mask[:rows] = True
    return mask


def test_a_class_all_of_whose_objects_are_difficult_makes_no_case():
    box = (0, 0, 2, 2)
    instances = (
        Instance(4, box, difficult=True),
        Instance(2, box),
        Instance(2, box, difficult=True),
        Instance(0, box, crowd=True),
    )
    annotation = Annotation("a", (8, 8), instances)
    assert labels_of(annotation) == [0, 2]
    assert labels_of(Annotation("a", (8, 8), ())) == []


def test_masks_and_boxes_count_every_object_of_the_class():
    instances = (
        Instance(1, (0, 0, 8, 8), partial(stripe, 1)),
        Instance(1, (5, 5, 7, 8), difficult=True),
        Instance(2, (0, 4, 8, 5)),
    )
    annotation = Annotation("a", (8, 8), instances)
    expected = [[y < 1 or (y >= 5 and 5 <= x < 7) for x in range(8)] for y in range(8)]
    assert class_mask(annotation, 1).tolist() == expected
    assert class_boxes(annotation, 1).tolist() == [[0, 0, 8, 8], [5, 5, 7, 8]]
    assert not class_mask(annotation, 5).any()
    assert class_boxes(annotation, 5).shape == (0, 4)


def test_an_object_smaller_than_a_pixel_is_the_pixels_it_touches():
    empty = partial(torch.zeros, 8, 8, dtype=torch.bool)
    for mask in (None, empty):
        found = class_mask(Annotation("a", (8, 8), (Instance(0, (2.2, 3.1, 2.9, 4.5), mask),)), 0)
        assert found.nonzero().tolist() == [[3, 2], [4, 2]]


@pytest.mark.parametrize(
    ("rows", "others", "difficult"),
    [(1, [3], True), (2, [3], False), (3, [3], False), (1, [], False), (1, [1], False), (1, [3, 4], True)],
)
def test_difficult_is_small_among_others(rows, others, difficult):
    """2 of 8 rows are a quarter: less is difficult, if another class is there."""
    instances = (Instance(1, (0, 0, 8, 8), partial(stripe, rows)), *(Instance(label, (0, 0, 1, 1)) for label in others))
    assert is_difficult(Annotation("a", (8, 8), instances), 1) is difficult


def test_difficult_counts_the_union_of_masks_with_crowds_and_difficult_objects():
    other, half = Instance(0, (0, 0, 1, 1)), (0, 0, 8, 1)
    crowd = Instance(1, (0, 0, 8, 1), partial(stripe, 2), crowd=True)
    assert not is_difficult(Annotation("a", (8, 8), (other, Instance(1, half), crowd)), 1)
    assert not is_difficult(
        Annotation("a", (8, 8), (other, Instance(1, half), Instance(1, (0, 1, 8, 2), None, True))), 1
    )
    assert is_difficult(Annotation("a", (8, 8), (other, Instance(1, half), Instance(1, half), Instance(1, half))), 1)


def test_outputs_of_the_own_classes_are_one_by_one():
    assert outputs_of(["a", "b"], 2) == [(0,), (1,)]
    with pytest.raises(ValueError, match=r"class_map=None takes 2 classes .* 3 outputs; .*expected"):
        outputs_of(["a", "b"], 3)


def test_outputs_of_a_map(tmp_path):
    (tmp_path / "map.json").write_text('{"b": [4, 2], "a": [0]}')
    found = outputs_of(["a", "b", "c"], 5, read_class_map(tmp_path / "map.json"))
    assert found == [(0,), (4, 2), ()]
    with pytest.raises(ValueError, match=r"class_map='d' is not a class of the data set"):
        outputs_of(["a"], 5, {"d": [1]})
    for wrong in ([5], [-1], ["cat"], [1.0]):
        with pytest.raises(ValueError, match=r"class_map=.* of 'a' are not outputs of the network; expected 0 to 4"):
            outputs_of(["a"], 5, {"a": wrong})


@pytest.mark.parametrize("content", ["{", "[1, 2]", '{"a": 3}', None])
def test_a_broken_map(tmp_path, content):
    if content is not None:
        (tmp_path / "map.json").write_text(content)
    with pytest.raises(ValueError, match=r"class_map='.*map\.json' (cannot be read|is not a class map)"):
        read_class_map(tmp_path / "map.json")


def test_describe_tells_data_sets_apart():
    first, same, longer, later = (
        describe(load_dataset("scenes", scenes=count, seed=seed)) for count, seed in ((2, 0), (2, 0), (3, 0), (2, 1))
    )
    assert first == same == json.loads(json.dumps(first))
    assert (first["name"], first["root"], first["images"], len(first["classes"])) == ("scenes", None, 2, 8)
    assert len({entry["annotations"] for entry in (first, longer, later)}) == 3
