"""Methods as the evaluation calls them: what they are given, what they may return, and what becomes of it."""

import logging
from functools import partial

import pytest
import torch

from saliency import METHODS, smooth_grad
from saliency.evaluation.datasets import load_dataset
from saliency.evaluation.explainers import Explainer, named_methods
from saliency.evaluation.running import runner
from saliency.evaluation.running.runner import run
from saliency.evaluation.running.store import read_results
from saliency.networks.models import preprocessing
from saliency.scenes import scene_network

GRADIENT = METHODS["gradient"].function


def by_hand(model, input, target):
    """A gradient as one writes it: of one class for each image. Two classes each it does not take."""
    input = input.requires_grad_()
    scores = model(input)[torch.arange(len(input)), target]
    (gradient,) = torch.autograd.grad(scores.sum(), input)
    return gradient.abs().amax(1, keepdim=True)


class ByHand:
    """The same as an object."""

    def __call__(self, model, input, target):
        return by_hand(model, input, target)


@pytest.fixture(scope="module")
def network():
    return scene_network()


@pytest.mark.parametrize("columns", [[3, 1, 2], [1, 1], [1, 3], [2]])
@pytest.mark.parametrize("images", [1, 3])
def test_a_function_of_one_class_each_gives_the_maps_of_one_of_several(network, columns, images):
    """With a single class (N, 1), or as many classes as images, the indexing by hand means another thing in silence."""
    generator = torch.Generator().manual_seed(0)
    one, several = Explainer(by_hand), Explainer(GRADIENT)
    for count in columns:
        input = torch.rand(images, 3, 64, 64, generator=generator)
        targets = torch.randint(8, (images, count), generator=generator)
        found = one.maps(network, input, targets)
        torch.testing.assert_close(found, several.maps(network, input, targets))
        torch.testing.assert_close(found[:, -1:], GRADIENT(network, input, targets[:, -1]))


def test_what_a_function_takes_is_found_out_once_and_said(network, caplog):
    def counted(model, input, target):
        calls.append(tuple(target.shape))
        return by_hand(model, input, target)

    input, targets = torch.rand(2, 3, 64, 64), torch.tensor([[1, 2, 3], [4, 5, 6]])
    for first, asked in ((targets, [(2, 3)] + 3 * [(2,)]), (targets[:, :1], [(1, 2), (1,), (1,), (2,)])):
        calls, explainer = [], Explainer(counted)
        caplog.clear()
        explainer.maps(network, input, first)
        assert calls == asked
        assert "counted makes no maps (N, K, h, w)" in caplog.text
        calls.clear()
        explainer.maps(network, input, targets)
        assert calls == 3 * [(2,)]
        assert len(caplog.messages) == 1


def test_a_function_of_several_classes_is_asked_once(network):
    def counted(model, input, target):
        calls.append(tuple(target.shape))
        return GRADIENT(model, input, target)

    input, targets = torch.rand(2, 3, 64, 64), torch.tensor([[1, 2, 3], [4, 5, 6]])
    for first, asked in ((targets, [(2, 3)]), (targets[:, :1], [(1, 2), (2, 1)])):
        calls, explainer = [], Explainer(counted)
        explainer.maps(network, input, first)
        assert calls == asked
        explainer.maps(network, input, targets)
        assert calls == [*asked, (2, 3)]


def test_what_fails_decides_nothing(network):
    """Out of memory, or an image that a function cannot explain: the next images tell what it takes."""
    for error in (torch.OutOfMemoryError("full"), RuntimeError("not this one")):
        explainer = Explainer(partial(failing, error))
        input, targets = torch.zeros(1, 3, 64, 64), torch.tensor([[1, 2]])
        with pytest.raises(type(error)):
            explainer.maps(network, input, targets)
        with pytest.raises(type(error)):
            explainer.maps(network, input, targets[:, :1])
        found = explainer.maps(network, input + 0.5, targets[:, :1])
        torch.testing.assert_close(found, GRADIENT(network, input + 0.5, 1))


def failing(error, model, input, target):
    if not input.any():
        raise error
    return by_hand(model, input, target)


@pytest.mark.parametrize("shape", [(2, 5, 5), (2, 2, 5), (3, 1, 5, 5), (2, 3, 5, 5), ()])
def test_other_results_are_named(network, shape):
    with pytest.raises(ValueError, match=r"maps=a tensor .* do not fit target=.*; expected a tensor of shape \(2, 1, "):
        Explainer(lambda *call: torch.zeros(shape)).maps(
            network, torch.rand(2, 3, 9, 9), torch.tensor([[1, 2], [0, 1]])
        )
    with pytest.raises(ValueError, match="maps=a NoneType do not fit"):
        Explainer(lambda *call: None).maps(network, torch.rand(2, 3, 9, 9), torch.tensor([[1], [0]]))


def test_random_numbers_are_those_of_the_seed_whatever_was_tried_before(network):
    def noisy(model, input, target):
        return by_hand(model, input + torch.randn(input.shape), target)

    input, targets = torch.rand(2, 3, 64, 64), torch.tensor([[1, 2], [4, 5]])
    explainer, state = Explainer(noisy), torch.get_rng_state()
    first, second = (explainer.maps(network, input, targets, 7) for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first, explainer.maps(network, input, targets, 8))


def test_arguments_that_a_function_overwrites_are_its_own(network):
    def greedy(model, input, target):
        input.zero_()
        target.zero_()
        return torch.zeros(len(input), 1, 4, 4)

    input, targets = torch.rand(2, 3, 8, 8), torch.tensor([[1, 2], [4, 5]])
    Explainer(greedy).maps(network, input, targets)
    assert input.any()
    assert targets.all()


def play(methods, metrics, out, **options):
    dataset = load_dataset("scenes", scenes=3)
    return run(
        dataset,
        scene_network(),
        preprocessing("scenes"),
        methods,
        metrics,
        out,
        **{"gallery": 0, "limit": 4, **options},
    )


def scores(folder, method):
    return [(row.image, row.target, row.metric, row.score) for row in read_results(folder) if row.method == method]


def test_a_function_an_object_a_wrapper_and_lists_of_them_are_run_by_their_names(tmp_path):
    methods = [
        by_hand,
        ByHand(),
        smooth_grad(GRADIENT, 2),
        (METHODS["grad_cam"].function, {"saliency_layer": "layer3"}),
    ]
    outcome = play(methods, ["pointing_game", "energy_pointing_game"], tmp_path)
    assert outcome.failed == 0
    assert {line.method for line in outcome.lines} == {"by_hand", "ByHand", "gradient", "grad_cam"}
    assert len(scores(tmp_path, "by_hand")) == 8
    assert scores(tmp_path, "by_hand") == scores(tmp_path, "ByHand")
    play({"plain": GRADIENT}, ["pointing_game", "energy_pointing_game"], tmp_path)
    for found, expected in zip(scores(tmp_path, "by_hand"), scores(tmp_path, "plain"), strict=True):
        assert found == pytest.approx(expected, abs=1e-5)
    alone = play(by_hand, "pointing_game", tmp_path / "alone")
    assert [(line.method, line.metric, line.cases) for line in alone.lines] == [("by_hand", "pointing_game", 4)]


def test_a_metric_that_asks_for_further_maps_asks_a_function_of_one_class_as_well(tmp_path):
    play({"own": by_hand, "plain": GRADIENT}, {"random_logit": {}}, tmp_path)
    for found, expected in zip(scores(tmp_path, "own"), scores(tmp_path, "plain"), strict=True):
        assert found == pytest.approx(expected, abs=1e-4)


def test_names_of_methods():
    assert list(named_methods([torch.relu, partial(torch.mean, dim=1), lambda: 0])) == ["relu", "mean", "lambda"]
    explainer = Explainer(by_hand, version="1")
    assert named_methods(explainer) == {"by_hand": explainer}
    assert named_methods((by_hand, {"smooth": 0.1}))["by_hand"].options == {"smooth": 0.1}


GAME = "pointing_game"
WRONG = {
    "methods": [
        (3, GAME, {}, "methods=3 is not a method; expected a function"),
        ("grad_cam", GAME, {}, "methods='grad_cam' is not a method"),
        (None, GAME, {}, "methods=None is not a method"),
        ({"m": 3}, GAME, {}, "methods=3 is not a method"),
        ({"m": (by_hand, 3)}, GAME, {}, "options=3 is of the wrong type; expected a method's options by their names"),
        ({"m": Explainer(by_hand, {}, 3)}, GAME, {}, "version=3 is of the wrong type"),
        ({"a|b": by_hand}, GAME, {}, r"methods='a\|b' is not a name"),
        ({3: by_hand}, GAME, {}, "methods=3 is not a name"),
        ([], GAME, {}, "leaves nothing to do"),
        ([GRADIENT, smooth_grad(GRADIENT)], GAME, {}, "methods='gradient' is the name of two of them"),
        (lambda model: 0, GAME, {}, "methods='lambda' cannot be called with model, input, target"),
        ({"m": (by_hand, {"wide": 3})}, GAME, {}, "methods='m' cannot be called with .*'wide'.* unexpected keyword"),
    ],
    "metrics": [
        (by_hand, 3, {}, "metrics=3 names no metric"),
        (by_hand, [], {}, r"metrics=\[\] names no metric"),
        (by_hand, ["insertio"], {}, "metric='insertio' is unknown; did you mean 'insertion'"),
        (by_hand, [3], {}, "metric='3' is unknown"),
        (by_hand, {GAME: 3}, {}, "metric_options=3 of pointing_game is not a dict"),
    ],
    "options": [
        (by_hand, GAME, {"limit": 2.5}, "limit=2.5"),
        (by_hand, GAME, {"batch_size": "8"}, "batch_size='8'"),
        (by_hand, GAME, {"gallery": -1}, "gallery=-1 is not a number of images"),
        (by_hand, GAME, {"retry_errors": "yes"}, "retry_errors='yes'"),
        (by_hand, GAME, {"network": "resnet"}, "network='resnet'"),
        (by_hand, GAME, {"outputs": [(0,)]}, "outputs=.* are not those of 8 classes"),
        (by_hand, GAME, {"outputs": 8 * [0]}, "outputs=0 of a class"),
        (by_hand, GAME, {"outputs": 8 * [(-1,)]}, r"outputs=\(-1,\) of a class"),
    ],
}


@pytest.mark.parametrize(
    ("methods", "metrics", "options", "message"),
    [pytest.param(*row, id=f"{kind}-{number}") for kind, rows in WRONG.items() for number, row in enumerate(rows)],
)
def test_wrong_arguments_are_a_value_error_and_nothing_is_written(tmp_path, methods, metrics, options, message):
    with pytest.raises(ValueError, match=message):
        play(methods, metrics, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", range(3))
def test_what_is_no_data_set_network_or_preprocessing(tmp_path, place):
    given = [load_dataset("scenes", scenes=1), scene_network(), preprocessing("scenes")]
    given[place] = [3, "resnet50", (224,)][place]
    with pytest.raises(ValueError, match=["dataset=3 has no 'name'", "model='resnet50'", "preprocessing="][place]):
        run(*given, by_hand, GAME, tmp_path / "out")
    with pytest.raises(ValueError, match="out=3"):
        run(load_dataset("scenes", scenes=1), scene_network(), preprocessing("scenes"), by_hand, GAME, 3)
    assert not (tmp_path / "out").exists()


def test_a_run_ends_with_its_table_the_first_error_and_where_results_and_report_are(tmp_path, caplog):
    def broken(model, input, target):
        raise RuntimeError("not\nthis one")

    outcome = play({"broken": broken, "gradient": GRADIENT}, GAME, tmp_path)
    said = str(outcome).splitlines()
    assert said[0].startswith("| metric | method |")
    assert said[-3:] == [
        "broken, pointing_game: 4 failed; the first: scene0: RuntimeError: not this one",
        f"results: {tmp_path}",
        f"report: {tmp_path / 'report.html'}",
    ]
    assert outcome.report == tmp_path / "report.html"
    assert "| gradient |" in (tmp_path / "report.md").read_text("utf-8")


def test_a_report_that_cannot_be_written_leaves_the_results(tmp_path, monkeypatch, caplog):
    def full(folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(runner, "write_report", full)
    caplog.set_level(logging.WARNING)
    outcome = play({"gradient": GRADIENT}, GAME, tmp_path)
    assert (outcome.report, outcome.lines[0].cases) == (None, 4)
    assert "the report is not written: [Errno 28] No space left on device" in caplog.text
    assert "report:" not in str(outcome)
