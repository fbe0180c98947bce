"""RISE against its formula in loops, and what it makes of every target, output and option."""

import inspect

import numpy as np
import pytest
import torch
from torch import nn

from saliency.engine.maps import imsmooth
from saliency.methods.masking import rise, rise_class
from saliency.methods.masks import random_masks
from tests import cases

SIZE = (11, 14)
FEW = {"num_masks": 21, "num_cells": 3, "batch_size": 8}
SCORES = {"sigmoid": torch.sigmoid, "softmax": lambda x: x.softmax(1), "raw": lambda x: x}


def masks_of(size=SIZE, dtype=torch.float64, seed=0):
    return random_masks(21, size, num_cells=3, seed=seed, dtype=dtype)


def by_the_formula(model, input, masks, score):
    """One mask, one image, one class at a time; ``score`` gives (1, classes)."""
    maps = []
    with torch.no_grad():
        for image in input:
            total = 0
            for mask in masks:
                scores = score(model((image * mask)[None]))[0]
                total = total + torch.stack([value * mask[0] for value in scores])
            maps.append(total / len(masks))
    return torch.stack(maps)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.fixture
def model():
    return cases.IN_PLACE.model()


@pytest.fixture
def input():
    return cases.IN_PLACE.input()


# --- the formula ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [cases.IN_PLACE, cases.RESIDUAL, cases.TRANSFORMER], ids=lambda case: case.name)
@pytest.mark.parametrize("scores", SCORES)
def test_rise_is_the_mean_of_masks_weighed_by_their_score(case, scores):
    model, input = case.model(), case.input()
    expected = by_the_formula(model, input, masks_of(input.shape[2:]), SCORES[scores])
    close(rise(model, input, scores=scores, **FEW), expected)


def test_given_masks_take_the_place_of_drawn_ones(model, input):
    masks = torch.rand(13, 1, *SIZE, dtype=torch.float64)
    expected = by_the_formula(model, input, masks, torch.sigmoid)
    close(rise(model, input, filter_masks=masks, batch_size=5), expected)
    close(rise_class(model, input, [2, 0], filter_masks=masks), expected[[0, 1], [2, 0]][:, None])


def test_random_masks_are_the_masks_that_are_drawn(model, input):
    drawn = rise(model, input, seed=5, **FEW)
    assert torch.equal(drawn, rise(model, input, filter_masks=masks_of(seed=5), batch_size=8))
    assert not torch.equal(drawn, rise(model, input, seed=6, **FEW))


@pytest.mark.parametrize("batch_size", [1, 4, 21, 1000])
def test_the_size_of_a_chunk_changes_nothing(model, input, batch_size):
    close(rise(model, input, **{**FEW, "batch_size": batch_size}), rise(model, input, **FEW))


def test_a_chunk_is_masked_copies_of_one_image(model, input):
    seen = []
    model.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    rise(model, input, **FEW)
    masks = masks_of()
    expected = [image * part for part in masks.split(8) for image in input]
    assert [len(batch) for batch in seen] == [8, 8, 8, 8, 5, 5]
    for batch, masked in zip(seen, expected, strict=True):
        close(batch, masked)


@pytest.mark.parametrize("size", [(17,), (5, 6, 7)], ids=str)
def test_any_number_of_spatial_axes(size):
    convolution = {1: nn.Conv1d, 3: nn.Conv3d}[len(size)]
    model = nn.Sequential(convolution(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(4)).double()
    input = torch.randn(2, 2, *size, dtype=torch.float64)
    model(input)
    masks = masks_of(size)
    expected = torch.zeros(2, 4, *size, dtype=torch.float64)
    with torch.no_grad():
        for n in range(2):
            for mask in masks:
                score = model(input[n : n + 1] * mask)[0].sigmoid()
                expected[n] += score.view(-1, *[1] * len(size)) * mask / len(masks)
    close(rise(model, input, **FEW), expected)
    close(rise_class(model, input, 3, **FEW), expected[:, 3:])
    close(rise(model, input, resize=True, **FEW), expected)
    with pytest.raises(ValueError, match=r"resize_mode='bicubic'.*expected .*\.$"):
        rise(model, input, resize=True, resize_mode="bicubic", **FEW)


# --- targets --------------------------------------------------------------------------------------------------------


def test_rise_class_is_a_channel_of_rise(model, input):
    every = rise(model, input, **FEW)
    for target in ([1, 3], (1, 3), np.array([1, 3]), torch.tensor([1, 3]), torch.tensor([[1], [3]]), [(1,), (3,)]):
        if isinstance(target, tuple):
            continue  # a tuple indexes the output
        close(rise_class(model, input, target, **FEW), every[[0, 1], [1, 3]][:, None])
    for target in (2, np.int64(2), torch.tensor(2), (2,), lambda output: output[:, 2]):
        close(rise_class(model, input, target, **FEW), every[:, 2:3])
    assert torch.equal(rise(model, input, [1, 3], **FEW), every)


def test_k_targets_come_from_one_run(model, input):
    every = rise(model, input, **FEW)
    columns = torch.tensor([[0, 2, 0], [1, 3, 3]])
    expected = torch.stack([every[0, [0, 2, 0]], every[1, [1, 3, 3]]])
    calls = []
    model.register_forward_hook(lambda *args: calls.append(1))
    for target in (columns, columns.tolist(), columns.numpy()):
        calls.clear()
        close(rise_class(model, input, target, **FEW), expected)
        assert len(calls) == 2 * 3


@pytest.mark.parametrize("scores", SCORES)
def test_a_float_tensor_weighs_the_scores(model, input, scores):
    weight = torch.randn(2, 4, dtype=torch.float64)
    every = rise(model, input, scores=scores, **FEW)
    expected = (every * weight[..., None, None]).sum(1, keepdim=True)
    close(rise_class(model, input, weight, scores=scores, **FEW), expected)


@pytest.mark.parametrize("scores", SCORES)
def test_every_option_of_scores_selects_the_channel(model, input, scores):
    every = rise(model, input, scores=scores, **FEW)
    close(rise_class(model, input, [3, 0], scores=scores, **FEW), every[[0, 1], [3, 0]][:, None])


def test_softmax_of_all_classes_adds_up_to_the_mean_mask(model, input):
    total = rise(model, input, scores="softmax", **FEW).sum(1)
    close(total, masks_of().mean(0).expand(2, -1, -1))


def test_a_function_may_make_the_scores_itself(model, input):
    found = rise_class(model, input, lambda output: output.softmax(1)[:, 1], scores="raw", **FEW)
    close(found, rise_class(model, input, 1, scores="softmax", **FEW))


def test_a_class_that_is_ruled_out_does_not_spoil_the_others(input):
    class RuledOut(cases.InPlace):
        def forward(self, x):
            return self.scores(x).index_fill(1, torch.tensor([3]), -torch.inf)

    model = RuledOut().double().eval()
    assert rise_class(model, input, [1, 2], scores="raw", **FEW).isfinite().all()


# --- outputs --------------------------------------------------------------------------------------------------------


def test_tuple_column_and_dict_outputs(input):
    expected = rise(cases.IN_PLACE.model(), input, **FEW)
    for case in (cases.TUPLE, cases.COLUMN):
        close(rise(case.model(), input, **FEW), expected)
        close(rise_class(case.model(), input, [1, 3], **FEW), expected[[0, 1], [1, 3]][:, None])
    close(rise_class(cases.DICT.model(), input, cases.DICT.target, **FEW), expected[:, 1:2])

    class Logits(cases.InPlace):
        def forward(self, x):
            return {"aux": None, "logits": self.scores(x)}

    logits = Logits().double().eval()
    logits.load_state_dict(cases.IN_PLACE.model().state_dict())
    close(rise(logits, input, **FEW), expected)


def test_one_score_per_sample_is_one_class(input):
    expected = rise(cases.IN_PLACE.model(), input, **FEW)[:, 1:2]
    close(rise(cases.ONE_SCORE.model(), input, **FEW), expected)
    close(rise_class(cases.ONE_SCORE.model(), input, None, **FEW), expected)


@pytest.mark.parametrize("scores", SCORES)
def test_dense_outputs_are_scored_and_then_added_up(input, scores):
    model = cases.DENSE.model()
    expected = by_the_formula(model, input, masks_of(), lambda output: SCORES[scores](output).sum((2, 3)))
    close(rise(model, input, scores=scores, **FEW), expected)
    close(rise_class(model, input, [2, 1], scores=scores, **FEW), expected[[0, 1], [2, 1]][:, None])


def test_one_position_of_a_dense_output(input):
    model = cases.DENSE.model()
    spot = by_the_formula(model, input, masks_of(), lambda output: output.sigmoid()[:, 2:3, 4, 5])
    close(rise_class(model, input, (2, 4, 5), **FEW), spot)
    other = by_the_formula(model, input, masks_of(), lambda output: output.sigmoid()[:, 0:1, 10, 13])
    found = rise_class(model, input, [(2, 4, 5), (0, 10, 13)], **FEW)
    close(found, torch.stack([spot[0], other[1]]))


# --- what else reaches the model, and what comes out ----------------------------------------------------------------


def test_arguments_of_the_model_follow_their_image():
    case = cases.KEYWORDS
    model, input = case.model(), case.input()
    extra = torch.rand(2, 1, *SIZE, dtype=torch.float64)
    scale = torch.tensor([0.5, 1, 2, 3], dtype=torch.float64)
    kwargs = {"scale": scale, "power": 2}
    together = rise(model, input, additional_forward_args=extra, forward_kwargs=kwargs, **FEW)
    plain = nn.Module.__call__
    for n in range(2):
        masks = masks_of()
        with torch.no_grad():
            score = plain(model, input[n] * masks, extra[n : n + 1], **kwargs).sigmoid()
        close(together[n], (score[:, :, None, None] * masks).mean(0))


def test_resize_and_smooth_finish_the_raw_map(model, input):
    raw = rise(model, input, **FEW)
    resized = nn.functional.interpolate(raw, (4, 9), mode="bicubic", align_corners=False)
    close(rise(model, input, resize=(9, 4), resize_mode="bicubic", **FEW), resized)
    smooth = imsmooth(raw, 0.1 * 14, padding_mode="replicate")
    close(rise(model, input, resize=True, smooth=0.1, **FEW), smooth)
    close(rise_class(model, input, 2, smooth=0.1, **FEW), smooth[:, 2:3])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("function", [rise, rise_class])
def test_dtypes(function, dtype):
    case = cases.IN_PLACE
    result = function(case.model(dtype), case.input(dtype), 1, resize=True, smooth=0.05, **FEW)
    expected = function(case.model(), case.input(), 1, resize=True, smooth=0.05, **FEW)
    assert result.dtype == dtype
    tolerance = 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(result.double(), expected, rtol=tolerance, atol=tolerance)


def test_half_precision_adds_up_many_masks_without_losing_them():
    # 4096 masks of weight about 0.5: sums kept in float16 stop growing at 2048.
    masks = torch.ones(4096, 1, 4, 4)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 1)).half()
    nn.init.zeros_(model[1].weight)
    nn.init.zeros_(model[1].bias)
    result = rise(model, torch.ones(1, 1, 4, 4).half(), filter_masks=masks, batch_size=512)
    assert torch.equal(result, torch.full((1, 1, 4, 4), 0.5).half())


@pytest.mark.parametrize("function", [rise, rise_class])
def test_nothing_of_the_caller_is_touched(function):
    case = cases.TRAIN_MODE
    model, input = case.model(), case.input().requires_grad_()
    masks = masks_of().requires_grad_()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    flags, before, rng = [m.training for m in model.modules()], input.detach().clone(), torch.get_rng_state()
    result = function(model, input, 1, filter_masks=masks)
    assert not result.requires_grad
    assert torch.equal(input, before)
    assert torch.equal(masks, masks_of())
    assert input.grad is None
    assert torch.equal(torch.get_rng_state(), rng)
    assert [m.training for m in model.modules()] == flags
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_model_that_overwrites_its_input(input):
    before = input.clone()
    model = cases.FIRST_IN_PLACE.model()
    expected = by_the_formula(model, input, masks_of(), torch.sigmoid)
    close(rise(model, input, **FEW), expected)
    assert torch.equal(input, before)


@pytest.mark.parametrize("function", [rise, rise_class])
def test_modes_of_the_caller(model, input, function):
    expected = function(model, input, 1, **FEW)
    with torch.inference_mode():
        inside = cases.IN_PLACE.input()
        given = masks_of()
        assert torch.equal(function(model, inside, 1, **FEW), expected)
        assert torch.equal(function(model, inside, 1, filter_masks=given, batch_size=8), expected)
    float_model, float_input = cases.IN_PLACE.model(torch.float32), cases.IN_PLACE.input(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        scores = float_model(float_input[0] * masks_of(dtype=torch.float32)).detach()
        cast = function(float_model, float_input, 1, **FEW)
    assert scores.dtype == torch.bfloat16
    by_hand = (scores.float().sigmoid()[:, 1, None, None] * masks_of(dtype=torch.float32)[:, 0]).mean(0)
    torch.testing.assert_close(cast[0, 1 if function is rise else 0], by_hand, rtol=1e-5, atol=1e-6)


def test_wrapped_models(model, input):
    expected = rise(model, input, **FEW)
    assert torch.equal(rise(nn.DataParallel(model), input, **FEW), expected)


# --- progress -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [rise, rise_class])
def test_progress_is_told_after_every_chunk(model, input, function):
    steps = []
    function(model, input, 1, progress=lambda *step: steps.append(step), **FEW)
    assert steps == [(8, 21), (16, 21), (21, 21)]
    steps.clear()
    function(model, input, 1, filter_masks=masks_of()[:9], batch_size=5, progress=lambda *step: steps.append(step))
    assert steps == [(5, 9), (9, 9)]


def test_a_run_that_is_stopped_leaves_the_model_as_it_was(input):
    model = cases.TRAIN_MODE.model()
    flags = [m.training for m in model.modules()]

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rise(model, input, progress=stop, **FEW)
    assert [m.training for m in model.modules()] == flags
    assert torch.is_grad_enabled()


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [rise, rise_class])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"input": np.zeros((2, 3, 4, 4))}, ["input=ndarray", "tensor"]),
        ({"input": (torch.zeros(2, 3, 4, 4),)}, ["input=tuple", "single"]),
        ({"input": torch.zeros(2, 3, 4, 4).long()}, ["input=torch.int64", "floating"]),
        ({"input": torch.zeros(2, 3)}, ["input=(2, 3)", "(N, C, H, W)"]),
        ({"input": torch.zeros(0, 3, 4, 4)}, ["input=(0, 3, 4, 4)", "N > 0"]),
        ({"input": torch.zeros(2, 3, 0, 4)}, ["input=(2, 3, 0, 4)", "positions"]),
        ({"model": len}, ["model=builtin", "Module"]),
        ({"num_masks": 0}, ["num_masks=0", "int >= 1"]),
        ({"num_masks": 1.5}, ["num_masks=1.5", "int >= 1"]),
        ({"num_cells": 0}, ["num_cells=0", "int >= 1"]),
        ({"num_cells": "7"}, ["num_cells='7'", "int >= 1"]),
        ({"batch_size": 0}, ["batch_size=0", "int >= 1"]),
        ({"batch_size": True}, ["batch_size=True", "int >= 1"]),
        ({"p": 0.0}, ["p=0.0", "(0, 1]"]),
        ({"p": 1.5}, ["p=1.5", "(0, 1]"]),
        ({"seed": "a"}, ["seed='a'", "int"]),
        ({"scores": "relu"}, ["scores='relu'", "sigmoid, softmax, raw"]),
        ({"scores": ["raw"]}, ["scores=['raw']", "sigmoid, softmax, raw"]),
        ({"progress": True}, ["progress=True", "function"]),
        ({"resize": 7}, ["resize=7", "(width, height)"]),
        ({"resize_mode": "cubic"}, ["resize_mode='cubic'", "bicubic"]),
        ({"smooth": -1}, ["smooth=-1", ">= 0"]),
        ({"forward_kwargs": [1]}, ["forward_kwargs=[1]", "dict"]),
        ({"filter_masks": np.ones((3, 1, 11, 14))}, ["filter_masks=a ndarray", "(M, 1, 11, 14)"]),
        ({"filter_masks": torch.ones(3, 11, 14)}, ["filter_masks=a tensor of shape (3, 11, 14)", "(M, 1, 11, 14)"]),
        ({"filter_masks": torch.ones(3, 3, 11, 14)}, ["filter_masks=a tensor of shape (3, 3, 11, 14)"]),
        ({"filter_masks": torch.ones(0, 1, 11, 14)}, ["filter_masks=a tensor of shape (0, 1, 11, 14)"]),
        ({"filter_masks": torch.tensor(1.0)}, ["filter_masks=a tensor of shape ()"]),
    ],
    ids=str,
)
def test_errors_come_before_the_model_runs(model, input, function, options, words):
    model.register_forward_pre_hook(lambda *args: pytest.fail("the model ran"))
    arguments = {"model": model, "input": input, "target": 1, **options}
    with pytest.raises(ValueError, match=r"=.*expected .*\.$") as error:
        function(**arguments)
    assert [word for word in words if word not in str(error.value)] == []


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (4, "target=4 is out of range"),
        ([0, -1], r"target=\[0, -1\] is out of range"),
        ([0, 1, 2], r"target=\[0, 1, 2\] has shape"),
        (None, "target=None needs one score"),
        ("cat", "target='cat' is not a class index"),
        ((0, 1), r"target=\(0, 1\) does not index"),
        ([(0,), (7,)], "is out of range for an output"),
        (torch.zeros(2, 3), "has shape"),
        (torch.zeros(2, 0).long(), "is empty"),
        (lambda output: output[None], "returned a tensor of shape"),
    ],
    ids=cases.shown,
)
def test_a_bad_target_is_the_driver_s_error_before_the_first_chunk_ends(model, input, target, words):
    def progress(done, total):
        pytest.fail("a chunk was done")

    with pytest.raises(ValueError, match=rf"{words}.*expected .*\.$"):
        rise_class(model, input, target, progress=progress, **FEW)


def test_outputs_without_scores_are_errors(input):
    model = cases.DICT.model()
    with pytest.raises(ValueError, match=r"returned a dict .*expected .*\.$"):
        rise(model, input, **FEW)
    with pytest.raises(ValueError, match=r"target=1 does not apply to .*expected .*\.$"):
        rise_class(model, input, 1, **FEW)

    class Total(cases.InPlace):
        def forward(self, x):
            return self.scores(x).sum()

    with pytest.raises(ValueError, match=r"returned a tensor of shape \(\) .*expected .*\.$"):
        rise(Total().double(), input, **FEW)
    for target in (None, 0):
        with pytest.raises(ValueError, match=r"returned a tensor of shape \(\) .*expected .*\.$"):
            rise_class(Total().double(), input, target, **FEW)


def test_softmax_needs_classes(input):
    for call in (
        lambda: rise(cases.ONE_SCORE.model(), input, scores="softmax", **FEW),
        lambda: rise_class(cases.IN_PLACE.model(), input, lambda output: output[:, 1], scores="softmax", **FEW),
    ):
        with pytest.raises(ValueError, match=r"^scores='softmax' .*expected .*\.$"):
            call()


def test_the_parameters_are_torchrays():
    """Names, order and defaults of TorchRay's ``rise``; what is new can only be given by name."""
    parameters = list(inspect.signature(rise).parameters.values())
    positional = {p.name: p.default for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD}
    assert list(positional) == [
        *("model", "input", "target", "seed", "num_masks", "num_cells", "filter_masks", "batch_size", "p"),
        *("resize", "resize_mode"),
    ]
    assert list(positional.values())[2:] == [None, 0, 8000, 7, None, 32, 0.5, False, "bilinear"]
    of_class = inspect.signature(rise_class).parameters
    assert list(of_class) == [p.name for p in parameters]
    assert all(of_class[p.name].default == p.default for p in parameters if p.name != "target")


@pytest.mark.parametrize(
    "target", [1, torch.tensor([[0, 2, 0], [1, 3, 3]]), lambda output: output[:, :2]], ids=cases.shown
)
def test_nothing_waits_for_the_device(target):
    model, input = cases.IN_PLACE.model(torch.float32).to("meta"), torch.zeros(2, 3, 11, 14, device="meta")
    assert rise(model, input, resize=True, smooth=0.1, **FEW).shape == (2, 4, 11, 14)
    found = rise_class(model, input, target, **FEW)
    assert found.is_meta
    assert found.shape[2:] == (11, 14)
