"""Targets as users have them: squeezed heads, labels, named outputs, and one function or tuple an image."""

from collections import namedtuple
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import saliency
from saliency import METHODS, feature_ablation, grad_cam, gradient
from tests import cases
from tests.cases import shown
from tests.users.networks import Net, cnn, gradients, rand

FEW = {"num_masks": 5, "batch_size": 2}  # the last chunk has one row
SEARCH = {"areas": 0.3, "max_iter": 3, "step": 2, "sigma": 2}


def with_head(change: Any) -> Net:
    net = cnn()
    return Net(lambda s, x: change(s.net(x)), net=net)


# --- heads that squeeze ---------------------------------------------------------------------------------------------

LINEAR = torch.tensor([[0.0, 1.0, 0.0, 0.0, 0.0]], dtype=torch.float64)


@pytest.mark.parametrize("squeeze", [lambda y: y.squeeze(), lambda y: y.squeeze(0), lambda y: y[:, None].squeeze()])
@pytest.mark.parametrize(
    "target", [1, [1], torch.tensor([1]), [[1]], (1,), [(1,)], LINEAR, lambda y: y[:, 1], [lambda y: y[1]]], ids=shown
)
def test_a_squeezed_head_has_its_row_back(squeeze, target):
    net, x = with_head(squeeze), rand(1, 3, 8, 9)
    expected = gradients(lambda x: net.net(x)[:, 1], x).abs().amax(1, keepdim=True)
    torch.testing.assert_close(gradient(net, x, target), expected)
    torch.testing.assert_close(grad_cam(net, x, target), grad_cam(net.net, x, 1, "conv"))
    torch.testing.assert_close(
        feature_ablation(net, x, target, "net.conv", perturbations_per_eval=1), feature_ablation(net.net, x, 1, "conv")
    )


def test_no_class_is_summed_over_where_none_was_said():
    net, x = with_head(torch.squeeze), rand(1, 3, 8, 9)
    with pytest.raises(ValueError, match=r"target=None needs one score per sample, but the output has shape \(1, 5\)"):
        gradient(net, x, None)


@pytest.mark.parametrize("target", [None, lambda y: y, lambda y: y.sum()[None]])
def test_an_only_score_without_any_axis(target):
    net, x = with_head(lambda y: y[:, 2].squeeze()), rand(1, 3, 8, 9)
    expected = gradients(lambda x: net.net(x)[:, 2], x).abs().amax(1, keepdim=True)
    torch.testing.assert_close(gradient(net, x, target), expected)


def test_a_squeezed_output_of_more_axes():
    """(C, h, w) of one image: the class is an axis, and no sample."""
    dense = Net(lambda s, x: s.conv(x).squeeze(), conv=nn.Conv2d(3, 4, 1))
    x = rand(1, 3, 5, 6)
    expected = gradients(lambda x: dense.conv(x)[:, 2], x).abs().amax(1, keepdim=True)
    torch.testing.assert_close(gradient(dense, x, 2), expected)


@pytest.mark.parametrize("target", [1, [1, 2], torch.tensor([[1], [2]]), (1,), lambda y: y[:, 1]])
@pytest.mark.parametrize("method", ["rise", "extremal_perturbation", "occlusion", "score_cam"])
def test_a_chunk_of_one_row_is_like_the_others(method, target):
    net, x = with_head(torch.squeeze), rand(2, 3, 8, 9)
    options = {"rise": FEW, "extremal_perturbation": SEARCH}.get(method, {"perturbations_per_eval": 1})
    function = METHODS[method].function
    torch.testing.assert_close(function(net, x, target, **options), function(net.net, x, target, **options))
    only = Net(lambda s, x: s.net(x)[:, 1].squeeze(), net=net.net)
    torch.testing.assert_close(function(only, x, None, **options), function(net.net, x, lambda y: y[:, 1], **options))


def test_all_classes_of_a_squeezed_head():
    net, x = with_head(torch.squeeze), rand(2, 3, 8, 9)
    torch.testing.assert_close(saliency.rise(net, x, **FEW), saliency.rise(net.net, x, **FEW))


def test_a_function_is_given_an_output_of_boxes_as_it_is():
    """(boxes, 4) of one image is no squeezed head: a function knows what it asks for."""
    net = Net(lambda s, x: s.conv(x)[0].flatten(1).T, conv=nn.Conv2d(3, 4, 3))
    x = rand(1, 3, 5, 6)
    expected = gradients(lambda x: net(x)[7, 2], x).abs().amax(1, keepdim=True)
    torch.testing.assert_close(gradient(net, x, lambda boxes: boxes[7:8, 2]), expected)


# --- labels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "labels",
    [
        torch.tensor([[0, 1, 0, 0, 0], [0, 0, 0, 0, 1]]),
        torch.tensor([[1, 1, 0, 0, 1], [0, 0, 0, 0, 0]]),
        torch.tensor([[1, 1, 1, 1, 1], [0, 1, 0, 1, 1]], dtype=torch.int32),
        [[0, 1, 1, 0, 0], [0, 0, 0, 1, 0]],
    ],
    ids=str,
)
@pytest.mark.parametrize("method", [case.name for case in cases.GENERAL])
def test_labels_are_no_indices(method, labels):
    options = {"rise": FEW, "extremal_perturbation": SEARCH}.get(method, {})
    with pytest.raises(ValueError, match=r"^target=.*labels do: pass target\.float\(\), or class indices; expected"):
        METHODS[method].function(cnn(), rand(2, 3, 8, 8), labels, **options)


def test_the_advice_is_right():
    net, x, labels = cnn(), rand(2, 3, 8, 8), torch.tensor([[0, 1, 0, 0, 1], [1, 0, 0, 0, 0]])
    expected = gradients(lambda x: (net(x) * labels).sum(1), x).abs().amax(1, keepdim=True)
    torch.testing.assert_close(gradient(net, x, labels.float()), expected)


@pytest.mark.parametrize("indices", [[[0, 1], [1, 0]], [[0, 0, 0]] * 2, [[0, 1, 2, 3, 4]] * 2, [[1, 1]] * 2])
def test_indices_stay_indices(indices):
    net, x = cnn(), rand(2, 3, 8, 8)
    found = gradient(net, x, torch.tensor(indices))
    for k in range(len(indices[0])):
        classes = torch.tensor([row[k] for row in indices])
        expected = gradients(lambda x, c=classes: net(x)[torch.arange(2), c], x).abs().amax(1)
        torch.testing.assert_close(found[:, k], expected)


# --- outputs --------------------------------------------------------------------------------------------------------

Output = namedtuple("Output", ["loss", "logits"])
Segmented = namedtuple("Segmented", ["aux", "out"])


@dataclass
class Classified:
    hidden: Tensor
    logits: Tensor


@pytest.mark.parametrize(
    "wrap",
    [
        lambda y: Output(torch.zeros(()), y),
        lambda y: Segmented(y * 2, y),
        lambda y: Classified(y * 2, y),
        lambda y: SimpleNamespace(logits=y, loss=None),
        lambda y: {"loss": torch.zeros(()), "logits": y},
        lambda y: {"logits": None, "out": y},
        lambda y: (y, y * 2),
    ],
)
def test_an_output_with_logits_by_name(wrap):
    net, x = with_head(wrap), rand(2, 3, 8, 8)
    expected = gradients(lambda x: net.net(x)[:, 1], x).abs().amax(1, keepdim=True)
    torch.testing.assert_close(gradient(net, x, 1), expected)
    assert saliency.find_layer(net, x, target=1) == "net.conv"
    for method, options in (("rise", FEW), ("extremal_perturbation", SEARCH), ("occlusion", {})):
        function = METHODS[method].function
        torch.testing.assert_close(function(net, x, 1, **options), function(net.net, x, 1, **options))


# --- one for each image ---------------------------------------------------------------------------------------------

PER_IMAGE = [
    [lambda y: y[1], lambda y: y[3]],
    [lambda y: y[1] - y[0], lambda y: y[3:4]],
    [(1,), (3,)],
    [1, 3],
    torch.tensor([[1], [3]]),
]


def of_image(target: Any, i: int) -> Any:
    return target[i : i + 1]


@pytest.mark.parametrize("target", PER_IMAGE, ids=["functions", "differences", "tuples", "ints", "tensor"])
@pytest.mark.parametrize("method", [case.name for case in cases.GENERAL if case.name != "feature_permutation"])
def test_every_image_has_its_own(method, target):
    """As one call for each image."""
    if method == "finer_cam" and callable(target[0]):
        pytest.skip("it compares classes")
    net, x = cnn(), rand(2, 3, 8, 9)
    options = {"rise": FEW, "extremal_perturbation": SEARCH}.get(method, {})
    function = METHODS[method].function
    found = function(net, x, target, **options)
    each = [function(net, x[i : i + 1], of_image(target, i), **options) for i in range(2)]
    torch.testing.assert_close(found, torch.cat(each), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("target", [[lambda y: y[1]], [(1,)] * 3, [1, 2, 3], torch.ones(3, 5)])
@pytest.mark.parametrize("method", METHODS)
def test_as_many_as_there_are_images_before_the_work(method, target):
    net, x, calls = cnn(), rand(2, 3, 8, 9), []
    net.register_forward_pre_hook(lambda *args: calls.append(1))
    options = {"rise": FEW, "extremal_perturbation": SEARCH}.get(method, {})
    with pytest.raises(ValueError, match=r"^target=.* the batch holds 2 samples; expected"):
        METHODS[method].function(net, x, target, "" if method != "rise" else 0, **options)
    assert not calls


def test_rise_by_hand_of_one_function_an_image():
    net, x = cnn(), rand(2, 3, 6, 7)
    masks = rand(5, 1, 6, 7)
    found = METHODS["rise"].function(net, x, PER_IMAGE[0], filter_masks=masks, batch_size=2, scores="raw")
    with torch.no_grad():
        for i, c in enumerate((1, 3)):
            expected = sum(net(x[i : i + 1] * mask)[0, c] * mask for mask in masks) / 5
            torch.testing.assert_close(found[i], expected)


def test_masks_of_features_may_differ_between_images():
    net, x = cnn(), rand(2, 3, 4, 4)
    masks = torch.stack([torch.arange(16).view(1, 4, 4) // 8, torch.arange(16).view(1, 4, 4) % 2])
    found = feature_ablation(net, x, 1, "", feature_mask=masks)
    with torch.no_grad():
        for i in range(2):
            for feature in (0, 1):
                inside = (masks[i] == feature).expand(3, 4, 4)
                drop = net(x[i : i + 1])[0, 1] - net(torch.where(inside, 0, x[i : i + 1]))[0, 1]
                torch.testing.assert_close(found[i][masks[i] == feature], (drop * 3).expand(8))


@pytest.mark.parametrize(
    "options",
    [
        {"feature_mask": (torch.zeros(1, 1, 4, 4).long(), torch.zeros(1, 1, 3, 4).long())},
        {"feature_mask": (torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4))},
        {"layer_mask": (torch.zeros(1, 1, 4, 4).long(),)},
        {"feature_mask": torch.zeros(3, 1, 4, 4).long()},
        {"baselines": (0, torch.zeros(1, 3, 2, 2))},
        {"baselines": (0, 1, 2)},
    ],
    ids=str,
)
def test_masks_and_baselines_that_do_not_fit_one_of_the_inputs_before_the_work(options):
    calls: list[int] = []
    net = Net(lambda s, a, b: calls.append(1) or s.a(a).mean((2, 3)) + s.a(b).mean((2, 3)), a=nn.Conv2d(3, 4, 3))
    with pytest.raises(ValueError, match=r"^(feature_mask|layer_mask|baselines)=.*expected .*\.$"):
        feature_ablation(net, (rand(2, 3, 4, 4), rand(2, 3, 4, 4)), 1, "", **options)
    if "baselines" not in options:
        with pytest.raises(ValueError, match=r"^(feature_mask|layer_mask)=.*expected .*\.$"):
            saliency.feature_permutation(net, (rand(2, 3, 4, 4), rand(2, 3, 4, 4)), 1, "", **options)
    assert not calls


# --- functions that hold something of every image ---------------------------------------------------------------------

LABELS = torch.tensor([1, 4])
OF_THIS_BATCH = [
    lambda y: y[torch.arange(2), LABELS],
    lambda y: y.gather(1, LABELS[:, None])[:, 0],
    lambda y: (y * torch.eye(5, dtype=y.dtype)[LABELS]).sum(1),
    lambda y: nn.functional.cross_entropy(y, LABELS, reduction="none"),
]
CHUNKS = [  # of as many rows as there are images
    (saliency.smooth_gradient, {"n_samples": 4, "internal_batch_size": 2}),
    (saliency.integrated_gradients, {"n_steps": 4, "internal_batch_size": 2}),
    (METHODS["rise"].function, {"num_masks": 4, "batch_size": 2}),
    (feature_ablation, {"saliency_layer": "conv", "perturbations_per_eval": 2}),
]


@pytest.mark.parametrize(("method", "options"), CHUNKS, ids=shown)
@pytest.mark.parametrize("function", OF_THIS_BATCH)
def test_labels_in_a_function_are_not_those_of_other_rows(method, options, function):
    with pytest.raises((ValueError, IndexError, RuntimeError)):
        method(cnn(), rand(2, 3, 8, 9), function, **options)


@pytest.mark.parametrize(("method", "options"), CHUNKS, ids=shown)
@pytest.mark.parametrize("wrap", [lambda y: y, lambda y: {"logits": y, "y": (y,)}, lambda y: SimpleNamespace(logits=y)])
def test_a_function_of_every_row_by_itself(method, options, wrap):
    net, x = cnn(), rand(2, 3, 8, 9)

    def score(y: Any) -> Tensor:
        y = y if isinstance(y, Tensor) else y["logits"] if isinstance(y, dict) else y.logits
        return y[:, 3]

    found = method(Net(lambda s, x: wrap(s.net(x)), net=net), x, score, **options | _in(options, "net."))
    torch.testing.assert_close(found, method(net, x, 3, **options))


def _in(options: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {"saliency_layer": prefix + options["saliency_layer"]} if "saliency_layer" in options else {}


def test_an_error_blames_no_layer_that_was_found():
    """Experts that each see some of the images, as a mixture routes them."""

    def mixture(s: Net, x: Tensor) -> Tensor:
        cells = s.conv(x).relu()
        first, second = cells[:1], cells[1:]
        return s.fc(torch.cat([s.one(first), s.other(second)] if len(second) else [s.other(first)]).mean((2, 3)))

    net = Net(mixture, conv=nn.Conv2d(3, 4, 3), one=nn.Conv2d(4, 5, 1), other=nn.Conv2d(4, 5, 1), fc=nn.Linear(5, 2))
    with pytest.raises(ValueError, match=r"saliency_layer=None \(found: 'other'\) returns .*not a batch of 3"):
        grad_cam(net, rand(3, 3, 8, 9), 1)
