"""The contract: what holds for every method on every kind of model, and what a call leaves as it was."""

import copy
import random
import threading
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo.eval_frame
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack

import saliency
from saliency.engine.maps import imsmooth
from tests import cases
from tests.cases import GENERAL, KINDS, METHOD_CASES, MethodCase, ModelCase, crossed, on_models

pytestmark = cases.NOTICES

METHODS = [pytest.param(case, id=case.name) for case in GENERAL]
TARGETED = [pytest.param(case, id=case.name) for case in GENERAL if case.uses_target]
FAMILIES = [case for case in GENERAL if case.name in ("gradient", "guided_backprop", "deconvnet", "grad_cam")]
# By rules that replace operations, or that keep what another pass has made.
RULED = ("deconvnet", "excitation_backprop", "contrastive_excitation_backprop", "deep_lift", "deep_lift_shap")
NOT_RULED = [case for case in GENERAL if case.name not in RULED]
FEW_METHODS = [pytest.param(case, id=case.name) for case in FAMILIES]


def explain(method: MethodCase, case: ModelCase, model: Any = None, input: Any = None, **options: Any) -> Any:
    """Call a method on a model of the table; what is not said is the case's own."""
    dtype = options.pop("dtype", torch.float64)
    target = options.pop("target", case.target)
    layer = options.pop("layer", case.layers[1])
    model = case.model(dtype) if model is None else model
    input = case.input(dtype) if input is None else input
    return method(model, input, target, layer, **{**case.options(dtype), **options})


def skip_if_not_made_for(method: MethodCase, case: ModelCase) -> None:
    if method.at_input and len(case.shapes) > 1:
        pytest.skip("a method that multiplies with the input takes one input")
    if method.name == "ablation_cam" and case is cases.TWICE:
        pytest.skip("the score rises without any of the channels: the map is 0")
    if method.name == "cam" and case in (cases.TWICE, cases.TRANSFORMER, cases.DENSE):
        pytest.skip("no layer is pooled and then classified")
    if method.name == "contrastive_excitation_backprop" and case is cases.DENSE:
        pytest.skip("the layer that is explained is the classifier itself")


def skip_if_averaged(method: MethodCase) -> None:
    if method.name == "extremal_perturbation":
        pytest.skip("its reward is the mean over the positions, as in TorchRay")


def needs(method: MethodCase, *things: str) -> None:
    for thing in things:
        if thing in method.lacks:
            pytest.skip(f"{method.name} has no {thing}")


def device_type() -> str:
    return torch.get_default_device().type


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_every_method_has_a_row():
    assert [case.name for case in METHOD_CASES] == list(saliency.METHODS)


def test_every_kind_is_tested_on_all_models():
    assert {case.kind: case.name for case in METHOD_CASES if case.stands_for_its_kind} == KINDS


# --- the result -----------------------------------------------------------------------------------------------------


@on_models()
def test_result_is_a_map_at_the_layers_resolution(method, case):
    skip_if_not_made_for(method, case)
    result = explain(method, case)
    grid = case.shapes[0][2:] if method.at_input else case.grid
    assert result.shape == (case.shapes[0][0], 1, *grid)
    assert result.dtype == torch.float64
    assert not result.requires_grad
    assert result.grad_fn is None
    assert result.isfinite().all()
    assert result.abs().max() > 0
    assert method.signed or result.min() >= 0
    assert torch.equal(result, explain(method, case))


@on_models()
def test_resize_and_smooth_finish_the_raw_map(method, case):
    skip_if_not_made_for(method, case)
    raw = explain(method, case)
    size = case.shapes[0][2:]
    assert torch.equal(
        explain(method, case, resize=True), F.interpolate(raw, size, mode="bilinear", align_corners=False)
    )
    wide = explain(method, case, resize=(9, 4), resize_mode="nearest", smooth=0.1)
    assert torch.equal(wide, imsmooth(F.interpolate(raw, (4, 9)), 0.9, padding_mode="replicate"))


@on_models()
def test_a_list_of_layers_gives_the_single_maps(method, case):
    needs(method, "layers")
    skip_if_not_made_for(method, case)
    if case is cases.STOCHASTIC and method.kind in ("layer path", "scores"):
        pytest.skip("each layer has passes, and so random numbers, of its own")
    layers = [case.layers[1], case.layers[0], case.layers[1]]
    results = explain(method, case, layer=layers)
    assert isinstance(results, list)
    assert len(results) == 3
    for layer, result in zip(layers, results, strict=True):
        close(result, explain(method, case, layer=layer))


@pytest.mark.parametrize("method", METHODS)
def test_a_list_may_hold_the_input_a_module_and_the_default(method):
    needs(method, "layers")
    case = cases.IN_PLACE
    model = case.model()
    results = explain(method, case, model, layer=["", model.features[0], None])
    for layer, result in zip(["", "features.0", "features"], results, strict=True):
        close(result, explain(method, case, layer=layer))


@on_models()
def test_a_module_and_its_name_are_the_same_layer(method, case):
    skip_if_not_made_for(method, case)
    model = case.model()
    layer = model.get_submodule(case.layers[1])
    assert torch.equal(explain(method, case, model, layer=layer), explain(method, case))


@on_models()
def test_the_default_layer(method, case):
    """Left out, it is the input for the gradient family, and the last layer with spatial output for the others."""
    needs(method, "default")
    skip_if_not_made_for(method, case)
    default = method(case.model(), case.input(), case.target, **case.options(torch.float64))
    expected = explain(method, case, layer=case.layers[1] if method.layer is None else "")
    if isinstance(expected, tuple):
        assert all(map(torch.equal, default, expected))
    else:
        assert torch.equal(default, expected)
    assert torch.equal(explain(method, case, layer=None), explain(method, case))


@on_models(lambda case: case.batched)
def test_a_batch_is_its_images_one_by_one(method, case):
    needs(method, "one")
    skip_if_not_made_for(method, case)
    together = explain(method, case)
    input = case.input()
    for i in range(2):
        one = tuple(x[i : i + 1] for x in input) if isinstance(input, tuple) else input[i : i + 1]
        close(together[i : i + 1], explain(method, case, input=one))


@pytest.mark.parametrize("method", METHODS)
def test_channels_last_memory_gives_the_same_map(method):
    needs(method, "any layer")
    case = cases.IN_PLACE
    model = case.model().to(memory_format=torch.channels_last)
    input = case.input().to(memory_format=torch.channels_last)
    for target in (1, torch.tensor([[1, 2], [0, 3]])):
        for layer in ("", "features.0"):
            expected = explain(method, case, layer=layer, target=target)
            close(explain(method, case, model, input, layer=layer, target=target), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", [pytest.param(c, id=c.name) for c in (cases.IN_PLACE, cases.TRANSFORMER)])
@pytest.mark.parametrize("method", METHODS)
def test_dtypes(method, case, dtype):
    skip_if_not_made_for(method, case)
    result = explain(method, case, dtype=dtype, resize=True, smooth=0.05)
    expected = explain(method, case, resize=True, smooth=0.05)
    assert result.dtype == dtype
    assert result.isfinite().all()
    searches = method.kind == "search"  # at its start rounding decides, between positions that tie
    if dtype == torch.float32 and case is cases.IN_PLACE and not searches:
        torch.testing.assert_close(result.double(), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


@on_models()
def test_frozen_models_and_modes_of_the_caller_change_nothing(method, case):
    skip_if_not_made_for(method, case)
    expected = explain(method, case)
    close(explain(method, case, case.model().requires_grad_(False)), expected)
    with torch.no_grad():
        assert torch.equal(explain(method, case), expected)
    model, input = case.model(), case.input()
    with torch.inference_mode():
        outside = explain(method, case, model, input)
        made_inside = case.input()
        assert torch.equal(outside, expected)
        assert torch.equal(explain(method, case, model, made_inside), expected)


# --- targets --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [cases.IN_PLACE, cases.TUPLE, cases.COLUMN, cases.CHANNELS_LAST], ids=lambda c: c.name)
@pytest.mark.parametrize("method", METHODS)
def test_spellings_of_a_target(method, case):
    """An int for all, one per sample as list, array or tensor, a tuple of indices, the gradient, a function."""
    per_sample = [1, 3]
    one_by_one = [explain(method, case, target=i)[n : n + 1] for n, i in enumerate(per_sample)]
    expected = torch.cat(one_by_one)
    index = torch.tensor(per_sample)
    column = case is cases.COLUMN
    gradient = torch.eye(4, dtype=torch.float64)[index]
    gradient = gradient[..., None, None] if column else gradient
    tuples = [(i, 0, 0) if column else (i,) for i in per_sample]

    def function(output: Any) -> Tensor:
        scores = output[0] if isinstance(output, tuple) else output
        return scores.flatten(1)[torch.arange(2), index]

    def same_for_all(output: Any) -> Tensor:
        return (output[0] if isinstance(output, tuple) else output).flatten(1)[:, 1]

    for target in (per_sample, np.array(per_sample), index, index.int(), index[:, None], gradient, tuples):
        close(explain(method, case, target=target), expected)
    functions = [] if "functions" in method.lacks else [same_for_all]
    if functions and "batch" not in method.lacks:
        close(explain(method, case, target=function), expected)
    equal = explain(method, case, target=1)
    for target in (np.int64(1), torch.tensor(1), torch.tensor([1]), [1], tuples[0], [1, 1], *functions):
        close(explain(method, case, target=target), equal)


@on_models()
def test_k_targets_are_the_k_single_calls(method, case):
    skip_if_not_made_for(method, case)
    if not isinstance(case.target, int):
        pytest.skip("classes are not what this model is asked for")
    columns = torch.tensor([[0, 2, 0], [1, 3, 3]])
    places = ("", case.layers[1]) if case is cases.IN_PLACE and "any layer" not in method.lacks else case.layers[1:]
    for layer in places:
        together = explain(method, case, target=columns, layer=layer)
        together = together if isinstance(together, tuple) else (together,)
        for k in range(3):
            single = explain(method, case, target=columns[:, k], layer=layer)
            for a, b in zip(together, single if isinstance(single, tuple) else (single,), strict=True):
                assert a.shape[1] == 3
                close(a[:, k : k + 1], b)
    as_lists = explain(method, case, target=columns.tolist())
    assert torch.equal(as_lists, explain(method, case, target=columns))
    assert torch.equal(as_lists, explain(method, case, target=columns.cpu().numpy()))


@pytest.mark.parametrize("method", METHODS)
def test_dense_outputs(method):
    """An int selects its channel everywhere, a tuple one position of it."""
    skip_if_averaged(method)
    case = cases.DENSE
    skip_if_not_made_for(method, case)
    everywhere = torch.zeros(2, 4, 11, 14, dtype=torch.float64)
    everywhere[:, 1] = 1
    close(explain(method, case, target=1), explain(method, case, target=everywhere))
    if "functions" not in method.lacks:
        close(explain(method, case, target=1), explain(method, case, target=lambda y: y[:, 1].sum((1, 2))))
    once = torch.zeros_like(everywhere)
    once[0, 2, 3, 13] = once[1, 0, 10, 0] = 1
    close(explain(method, case, target=[(2, 3, 13), (0, 10, 0)]), explain(method, case, target=once))
    once = torch.zeros_like(everywhere)
    once[:, 2, 3, 13] = 1
    close(explain(method, case, target=(2, 3, 13)), explain(method, case, target=once))


@pytest.mark.parametrize("method", METHODS)
def test_none_is_the_only_score(method):
    needs(method, "functions")
    expected = explain(method, cases.IN_PLACE, target=1)
    close(explain(method, cases.ONE_SCORE, target=None), expected)
    column = cases.ONE_SCORE.model()
    column.forward = lambda x: column.scores(x)[:, 1:2]
    close(explain(method, cases.ONE_SCORE, column, target=None), expected)


@pytest.mark.parametrize("method", TARGETED)
def test_the_target_matters(method):
    needs(method, "any layer")
    assert not torch.equal(
        explain(method, cases.IN_PLACE, target=1, layer="features.0"),
        explain(method, cases.IN_PLACE, target=2, layer="features.0"),
    )


# --- the model is not touched ---------------------------------------------------------------------------------------


class Trap(nn.Module):
    """Lets everything through, or breaks at the armed moment: in the forward or in the backward pass."""

    forward_error: BaseException | None = None
    backward_error: BaseException | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.forward_error is not None:
            raise self.forward_error
        if self.backward_error is not None and x.requires_grad:
            x.register_hook(self._break)
        return x

    def _break(self, gradient: Tensor) -> Tensor:
        raise self.backward_error


class Delicate(nn.Module):
    """Everything that a careless tool would disturb."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, padding=1)
        self.norm = cases._norm(5)
        self.relu = nn.ReLU(inplace=True)
        self.drop = nn.Dropout2d(0.3)
        self.last = nn.Sequential(nn.Conv2d(5, 6, 3, stride=2), nn.ReLU6(inplace=True))
        self.position = Position()
        self.trap = Trap()
        self.classifier = nn.Linear(6, 4)
        self.register_buffer("offset", torch.linspace(0, 1, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x.add_(torch.rand_like(x))))
        x = self.last(self.drop(self.relu(x)) + self.position())
        return self.classifier(self.trap(F.dropout(x, 0.1, training=True).mean((2, 3)))) + self.offset


class Position(nn.Module):
    """A module whose output is its own parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(5, 1, 1))

    def forward(self) -> Tensor:
        return self.weight


def delicate_model() -> Delicate:
    torch.manual_seed(0)
    model = Delicate().train()
    model.norm.eval()
    model.last[1].eval()
    model.conv.bias.requires_grad_(False)
    model(torch.randn(2, 3, 11, 14)).sum().backward()
    model.last[0].weight.grad = None
    for module in model.modules():
        module.register_forward_hook(lambda module, args, output: None)
        module.register_forward_pre_hook(lambda module, args, kwargs: None, with_kwargs=True)
        module.register_state_dict_pre_hook(lambda *args: None)
    model.classifier.register_full_backward_hook(lambda module, before, after: None)
    model.conv.weight.register_hook(lambda gradient: gradient)
    return model


def _frozen(value: Any) -> Any:
    """A value to compare with later: tensors bit by bit, containers member by member, the rest by identity."""
    if isinstance(value, Tensor):
        hooks = (dict(value._backward_hooks or {}), dict(getattr(value, "_post_accumulate_grad_hooks", None) or {}))
        bits = value.detach().contiguous().view(-1).view(torch.uint8).cpu().numpy().tobytes()
        meta = (value.dtype, value.requires_grad, id(value.grad_fn), value.data_ptr(), value.stride(), hooks)
        return id(value), meta, bits, value._version, _frozen(value.grad) if value.is_leaf else None
    if isinstance(value, (dict, list, set)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return type(value), [(key, _frozen(item)) for key, item in items]
    return id(value) if not isinstance(value, (bool, int, float, str, type(None))) else value


def model_state(model: nn.Module) -> dict[str, Any]:
    state: dict[str, Any] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        state[name] = (id(module), type(module))
        for key, value in vars(module).items():
            if not key.endswith("_error"):
                state[f"{name}.{key}"] = _frozen(value)
    return state


def global_state() -> dict[str, Any]:
    spaces = [torch, F, Tensor, torch._C._nn, torch.autograd, nn.Module, nn.ReLU, torch.nn.modules.module]
    state: dict[str, Any] = {
        f"{space.__name__}.{key}": id(value)
        for space in spaces
        for key, value in vars(space).items()
        if callable(value) and isinstance(key, str)
    }
    hooks = {key: dict(value) for key, value in vars(nn.modules.module).items() if key.endswith("_hooks")}
    return state | {
        "hooks": hooks,
        "torch random": [state.numpy().tobytes() for state in (torch.get_rng_state(), *torch.cuda.get_rng_state_all())],
        "python random": random.getstate(),
        "numpy random": str(np.random.get_state()),
        "modes": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_anomaly_enabled()),
        "autocast": (torch.is_autocast_enabled(device_type()), torch.is_autocast_cache_enabled()),
        "functions": list(_get_current_function_mode_stack()),
        "default": (torch.get_default_dtype(), torch.get_default_device(), torch.get_num_threads()),
        "stance": str(torch._dynamo.eval_frame._stance),
    }


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return [key for key in before.keys() | after.keys() if before.get(key) != after.get(key)]


class Untouched:
    """A model, an input and the world, with the question what has changed since."""

    def __init__(self, model: nn.Module, input: Any) -> None:
        self.model, self.input = model, input
        self.before = self.now()

    def now(self) -> dict[str, Any]:
        inputs = self.input if isinstance(self.input, tuple) else (self.input,)
        return model_state(self.model) | global_state() | {f"input {i}": _frozen(x) for i, x in enumerate(inputs)}

    def check(self) -> None:
        assert differences(self.before, self.now()) == []


def delicate_input() -> Tensor:
    """A leaf with a gradient of its own."""
    input = torch.randn(2, 3, 11, 14, requires_grad=True)
    input.grad = torch.ones_like(input)
    input.register_hook(lambda gradient: gradient)
    return input


def _raise(error: BaseException) -> Any:
    raise error


MISHAPS: dict[str, tuple[dict[str, Any], type[BaseException] | None]] = {
    "none": ({}, None),
    "K targets": ({"target": [[0, 1], [2, 3]]}, None),
    "debug": ({"debug": True}, None),
    "resize and smooth": ({"resize": True, "smooth": 0.1}, None),
    "target out of range": ({"target": 4}, ValueError),
    "target of another batch": ({"target": [0, 1, 2]}, ValueError),
    "target function raises": ({"target": lambda output: _raise(KeyError("scores"))}, KeyError),
    "layer missing": ({"layer": "lost"}, ValueError),
    "layer of another model": ({"layer": nn.ReLU()}, ValueError),
    "option": ({"smooth": -1}, ValueError),
    "input": ({"input": torch.randn(2, 1, 11, 14)}, RuntimeError),
    "empty": ({"input": torch.randn(0, 3, 11, 14)}, ValueError),
    "forward raises": ({"forward_error": ZeroDivisionError()}, ZeroDivisionError),
    "forward interrupted": ({"forward_error": KeyboardInterrupt()}, KeyboardInterrupt),
    "backward raises": ({"backward_error": ZeroDivisionError()}, ZeroDivisionError),
    "backward interrupted": ({"backward_error": KeyboardInterrupt()}, KeyboardInterrupt),
}
NEEDS_BACKWARD = ("backward raises", "backward interrupted")
FOR_ALL = ("none", "K targets", "debug", "resize and smooth", "forward interrupted")


@pytest.mark.parametrize(
    ("method", "mishap"),
    [
        pytest.param(method, mishap, id=f"{method.name}, {mishap}")
        for method in GENERAL
        for mishap in MISHAPS
        if mishap in FOR_ALL or method in FAMILIES
    ],
)
@pytest.mark.parametrize("layer", ["", "last", None])
def test_nothing_is_touched(method, layer, mishap):
    if mishap == "debug":
        needs(method, "probes")
    if layer == "":
        needs(method, "any layer")
    options, error = {**MISHAPS[mishap][0]}, MISHAPS[mishap][1]
    if not method.uses_target and (mishap.startswith("target") or mishap in NEEDS_BACKWARD):
        pytest.skip("the target and the backward pass are not used")
    model = delicate_model()
    input = options.pop("input", delicate_input())
    for when in ("forward_error", "backward_error"):
        setattr(model.trap, when, options.pop(when, None))
    target, layer = options.pop("target", 1), options.pop("layer", layer)
    untouched = Untouched(model, input)
    if error is None:
        method(model, input, target, layer, **options)
    else:
        with pytest.raises(error):
            method(model, input, target, layer, **options)
    untouched.check()


@on_models()
def test_no_model_is_touched(method, case):
    skip_if_not_made_for(method, case)
    model = case.model()
    untouched = Untouched(model, case.input())
    explain(method, case, model, untouched.input, layer=None, resize=True)
    untouched.check()


@pytest.mark.parametrize("method", METHODS)
def test_what_the_caller_gets_is_not_shared(method):
    """A result that is overwritten reaches neither the model, nor its input, nor the next result."""
    needs(method, "any layer")
    for reduction in ({}, {"reduction": None}):
        if reduction and method.name not in ("gradient_x_activation", "activation", "guided_grad_cam"):
            continue
        for layer in ("", "features.0"):
            model, input = cases.IN_PLACE.model(), cases.IN_PLACE.input()
            untouched = Untouched(model, input)
            first = explain(method, cases.IN_PLACE, model, input, layer=layer, **reduction)
            expected = first.clone()
            first.fill_(7)
            untouched.check()
            assert torch.equal(explain(method, cases.IN_PLACE, model, input, layer=layer, **reduction), expected)


@pytest.mark.parametrize("layer", ["", "features.0"])
@pytest.mark.parametrize("method", METHODS)
def test_the_callers_memory_stays_where_it_is(method, layer):
    """A NumPy array over the same memory (or a CUDA graph with its address) still follows the tensor afterwards."""
    needs(method, "any layer")
    model, input = cases.IN_PLACE.model(), cases.IN_PLACE.input()
    array, address = (input.numpy() if input.device.type == "cpu" else input.view_as(input)), input.data_ptr()
    keeps = [explain(method, cases.IN_PLACE, model, input, layer=layer)]
    probed = {} if "probes" in method.lacks else {"debug": True}
    keeps.append(explain(method, cases.IN_PLACE, model, input, layer=layer, **probed))
    input.fill_(7)
    assert (array == 7).all()
    assert input.data_ptr() == address
    assert len(keeps) == 2


def test_the_checks_of_this_file_can_fail():
    """The net is woven tightly enough: each of these, done by a method, would be found."""
    model, input = delicate_model(), delicate_input()

    def found(change: Any, undo: Any) -> bool:
        untouched = Untouched(model, input)
        change()
        changed = bool(differences(untouched.before, untouched.now()))
        undo()
        return changed

    assert found(lambda: model.drop.eval(), lambda: model.drop.train())
    assert found(lambda: setattr(model.relu, "inplace", False), lambda: setattr(model.relu, "inplace", True))
    assert found(lambda: model.conv.weight.requires_grad_(False), lambda: model.conv.weight.requires_grad_(True))
    assert found(lambda: setattr(model.last[0].weight, "grad", torch.ones(6, 5, 3, 3)), lambda: None)
    assert found(lambda: model.norm.running_mean.add_(1e-7), lambda: None)
    assert found(lambda: torch.rand(1), lambda: None)
    assert found(lambda: random.random(), lambda: None)
    assert found(lambda: input.detach().mul_(-1), lambda: None)
    handle = model.drop.register_full_backward_pre_hook(lambda module, gradient: None)
    assert found(handle.remove, lambda: None)
    relu = torch.relu
    assert found(lambda: setattr(torch, "relu", lambda x: x), lambda: setattr(torch, "relu", relu))


def test_random_numbers_of_the_forward_pass_are_given_back():
    """Those of Python and numpy too."""

    class Dice(cases.InPlace):
        def forward(self, x: Tensor) -> Tensor:
            return self.scores(x * torch.rand(()) * (1 + random.random()) * (1 + np.random.rand()))

    model, input = Dice(), torch.randn(2, 3, 11, 14)
    for layer in ("", None):
        untouched = Untouched(model, input)
        first = saliency.gradient(model, input, 1, layer)
        untouched.check()
        assert torch.equal(saliency.gradient(model, input, 1, layer), first)


# --- the world around a call ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_autocast(method):
    case = cases.IN_PLACE
    if method.name in ("feature_ablation", "feature_permutation"):
        pytest.skip("one entry changes a score by less than the rounding of bfloat16")
    if method.name == "fem":
        pytest.skip("an activation is above a threshold, or below it")
    plain = explain(method, case, dtype=torch.float32, smooth=0.05)
    with torch.autocast(device_type(), torch.bfloat16):
        result = explain(method, case, dtype=torch.float32, smooth=0.05)
        assert result.dtype == torch.float32
        cast = F.linear(torch.ones(1, 1), torch.ones(1, 1)).dtype
    assert cast == torch.bfloat16
    scale = float(plain.abs().max())
    torch.testing.assert_close(result, plain, rtol=0.1, atol=0.1 * scale)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("layer", ["", "features.0", None])
@pytest.mark.parametrize("method", FEW_METHODS)
def test_a_training_step_in_the_same_autocast_block_keeps_its_gradients(method, layer, when):
    case = cases.IN_PLACE

    def step(explained: str | None) -> list[Tensor | None]:
        model, input = case.model(torch.float32), case.input(torch.float32)
        with torch.autocast(device_type(), torch.bfloat16):
            if explained == "after":
                method(model, input, 1, layer)
            loss = model(input).float().square().sum()
            if explained == "before":
                method(model, input, 1, layer)
        loss.backward()
        return [parameter.grad for parameter in model.parameters()]

    for expected, found in zip(step(None), step(when), strict=True):
        assert expected is not None
        assert found is not None
        assert torch.equal(expected, found)


@pytest.mark.parametrize("method", FEW_METHODS)
def test_a_training_step_around_a_call_keeps_its_gradients(method):
    """The caller's own graph, recorded before the call, still runs backward after it."""
    case = cases.IN_PLACE
    model, input = case.model(), case.input().requires_grad_()
    expected = torch.autograd.grad(model(input).square().sum(), [input, *model.parameters()])
    loss = model(input).square().sum()
    explain(method, case, model, input)
    for a, b in zip(torch.autograd.grad(loss, [input, *model.parameters()]), expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("method", FEW_METHODS)
def test_a_call_inside_a_backward_pass(method):
    case = cases.IN_PLACE
    model, input, results = case.model(), case.input(), []
    x = torch.ones((), requires_grad=True)
    x.register_hook(lambda gradient: results.append(explain(method, case, model, input)))
    (x * 2).backward()
    assert torch.equal(results[0], explain(method, case))


def _compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")


def _compiled_in_place(model: nn.Module) -> nn.Module:
    model.compile(backend="eager")
    return model


def _compiled_part(model: nn.Module) -> nn.Module:
    model.features = torch.compile(model.features, backend="eager")
    return model


def _compiled_part_in_place(model: nn.Module) -> nn.Module:
    model.features.compile(backend="eager")
    return model


@pytest.fixture(scope="module", params=[_compiled, _compiled_in_place, _compiled_part, _compiled_part_in_place])
def compiled(request: pytest.FixtureRequest) -> Iterator[nn.Module]:
    """A model that has run compiled."""
    torch._dynamo.reset()
    model = request.param(cases.IN_PLACE.model())
    with torch.no_grad():
        model(cases.IN_PLACE.input())
    yield model
    torch._dynamo.reset()


@crossed("layer", ["", "features.0", None], few=["features.0"])
def test_after_torch_compile(compiled, method, layer):
    needs(method, "any layer")
    untouched = Untouched(compiled, cases.IN_PLACE.input())
    result = method(compiled, untouched.input, 1, layer)
    untouched.check()
    assert torch.equal(result, explain(method, cases.IN_PLACE, layer=layer))


def test_compiled_code_still_runs_compiled_afterwards():
    runs = []

    def backend(graph: Any, example: Any) -> Any:
        def run(*args: Any) -> Any:
            runs.append(1)
            return graph(*args)

        return run

    torch._dynamo.reset()
    case = cases.IN_PLACE
    model = torch.compile(case.model().requires_grad_(False), backend=backend)
    model(case.input())
    before = len(runs)
    saliency.grad_cam(model, case.input(), 1)
    assert len(runs) == before > 0
    model(case.input())
    assert len(runs) == 2 * before
    torch._dynamo.reset()


@pytest.mark.skipif(torch.cuda.is_available(), reason="on the CPU DataParallel moves nothing")
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("method", METHODS)
def test_data_parallel(method, prefix):
    needs(method, "any layer", "default")
    case = cases.IN_PLACE
    model = nn.DataParallel(case.model())
    untouched = Untouched(model, case.input())
    result = method(model, untouched.input, 1, f"{prefix}features.0")
    default = method(model, untouched.input, 1, None)
    untouched.check()
    assert torch.equal(result, explain(method, case, layer="features.0"))
    assert torch.equal(default, explain(method, case))


class RegionWithGrad(cases.InPlace):
    """Networks that are fine-tuned in part say in their forward which part records a graph."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(True):
            x = self.features(x)
        return self.classifier(x.mean((2, 3)))


@crossed("layer", ["", "features.0", "features", None], few=["features.0"])
def test_a_layer_in_a_region_that_enables_gradients(method, layer):
    needs(method, "any layer")
    torch.manual_seed(0)
    model = RegionWithGrad().double().eval()
    assert torch.equal(method(model, cases.IN_PLACE.input(), 1, layer), explain(method, cases.IN_PLACE, layer=layer))


class Checkpointed(cases.InPlace):
    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.utils.checkpoint.checkpoint(self.features, x, use_reentrant=False).mean((2, 3)))


@crossed("layer", ["", "features.0", "features"], few=["features.0"], methods=NOT_RULED)
def test_checkpointed_layers(method, layer):
    """As in a memory-efficient DenseNet, where they are recomputed in evaluation mode too.

    A rule that replaces an operation is not seen by the recomputation: checkpointing has to be off for those.
    """
    needs(method, "any layer")
    torch.manual_seed(0)
    model = Checkpointed().double().eval()
    assert torch.equal(method(model, cases.IN_PLACE.input(), 1, layer), explain(method, cases.IN_PLACE, layer=layer))


# --- several calls at once ------------------------------------------------------------------------------------------


class Meeting(cases.TrainMode):
    """Asks its caller to wait at three places of the forward pass."""

    wait: Any = None

    def forward(self, x: Tensor) -> Tensor:
        self.meet("start")
        for layer in self.features:
            x = layer(x)
            self.meet(type(layer).__name__)
        self.meet("end")
        return F.dropout(self.classifier(x.mean((2, 3))), 0.5, self.training)

    def meet(self, place: str) -> None:
        if self.wait is not None:
            self.wait(place)


def in_threads(*calls: Any) -> list[Any]:
    """Run the calls at once, and give their results; what one raises is raised."""
    results: list[Any] = [None] * len(calls)

    def work(i: int) -> None:
        try:
            results[i] = calls[i]()
        except BaseException as error:
            results[i] = error

    threads = [threading.Thread(target=work, args=(i,), name=str(i), daemon=True) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def meeting_model() -> Meeting:
    torch.manual_seed(0)
    return Meeting().double()


PAIRS = [
    pytest.param(first, second, layer, id=f"{first}, {second} at {layer}")
    for first, second in [("grad_cam", "guided_backprop"), ("guided_backprop", "deconvnet"), ("layer_cam", "gradient")]
    for layer in ["", "features.0", None]
]


@pytest.mark.parametrize(("first", "second", "layer"), PAIRS)
def test_two_threads_step_by_step(first, second, layer):
    """Both threads take each step of the forward pass together."""
    functions = [saliency.METHODS[name].function for name in (first, second)]
    inputs = [cases.IN_PLACE.input(), -cases.IN_PLACE.input()]
    model = meeting_model()
    expected = [function(model, input, 1, layer) for function, input in zip(functions, inputs, strict=True)]
    untouched = Untouched(model, inputs[0])
    barrier = threading.Barrier(2)
    model.wait = lambda place: barrier.wait(20)
    found = in_threads(*(lambda f=f, x=x: f(model, x, 1, layer) for f, x in zip(functions, inputs, strict=True)))
    model.wait = None
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)
    assert differences(untouched.before, untouched.now()) == []


@pytest.mark.parametrize("place", ["start", "Conv2d", "end"])
@pytest.mark.parametrize(("first", "second", "layer"), PAIRS)
def test_a_whole_call_while_another_waits_half_way(first, second, layer, place):
    """The one that comes later is done first, and takes nothing from the other: no hook, no flag, no mode."""
    slow, quick = (saliency.METHODS[name].function for name in (first, second))
    x, y = cases.IN_PLACE.input(), -cases.IN_PLACE.input()
    model = meeting_model()
    expected = [slow(model, x, 1, layer), quick(model, y, 1, layer)]
    untouched = Untouched(model, x)
    half_way, done = threading.Event(), threading.Event()

    def wait(where: str) -> None:
        if threading.current_thread().name == "0" and where == place:
            half_way.set()
            assert done.wait(20)

    def second_call() -> Tensor:
        assert half_way.wait(20)
        try:
            return quick(model, y, 1, layer)
        finally:
            done.set()

    model.wait = wait
    found = in_threads(lambda: slow(model, x, 1, layer), second_call)
    model.wait = None
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)
    assert differences(untouched.before, untouched.now()) == []


@pytest.mark.parametrize("layer", ["features.0", None])
def test_a_plain_forward_in_another_thread_is_left_alone(layer):
    """Its output keeps no graph under no_grad, and is not recorded."""
    model, x, y = meeting_model().eval(), cases.IN_PLACE.input(), -cases.IN_PLACE.input()
    with torch.no_grad():
        expected = model(y), saliency.grad_cam(model, x, 1, layer)
    barrier, places = threading.Barrier(2), len(model.features) + 2
    passed = {"0": 0, "1": 0}

    def wait(place: str) -> None:
        """Step by step through the first forward pass of each thread."""
        name = threading.current_thread().name
        passed[name] += 1
        if passed[name] <= places:
            barrier.wait(20)

    def plain() -> tuple[Tensor, bool]:
        with torch.no_grad():
            return model(y), torch.is_grad_enabled()

    def explained() -> Tensor:
        return saliency.grad_cam(model, x, 1, layer)

    model.wait = wait
    (output, enabled), map = in_threads(plain, explained)
    assert not enabled
    assert not output.requires_grad
    assert torch.equal(output, expected[0])
    assert torch.equal(map, expected[1])


def test_the_default_layer_is_found_whatever_other_threads_run():
    """Another forward pass that is still in the first layer when this one ends is not the one asked about."""
    model, input = meeting_model(), cases.IN_PLACE.input()
    ended, passed, found = threading.Event(), threading.Event(), threading.Event()

    def wait(place: str) -> None:
        if threading.current_thread().name == "0" and place == "end":
            ended.set()
            assert passed.wait(20)
        if threading.current_thread().name == "1" and place == "Conv2d":
            passed.set()
            assert found.wait(20)

    def finding() -> str:
        try:
            return saliency.find_layer(model, input)
        finally:
            found.set()

    def running() -> None:
        assert ended.wait(20)
        with torch.no_grad():
            model(input)

    expected = saliency.find_layer(model, input)
    model.wait = wait
    assert in_threads(finding, running)[0] == expected


def test_many_threads_at_random():
    model, input = cases.TRAIN_MODE.model(), cases.TRAIN_MODE.input()
    untouched = Untouched(model, input)
    calls = [(method, layer) for method in FAMILIES for layer in ("", "features.0", "features")]
    expected = [method(model, input, 1, layer) for method, layer in calls]
    found = in_threads(*(lambda m=m, at=at: [m(model, input, 1, at) for _ in range(4)] for m, at in calls))
    for several, once in zip(found, expected, strict=True):
        assert all(torch.equal(result, once) for result in several)
    untouched.check()


# --- the careless user ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"input": np.zeros((1, 3, 11, 14))}, ["input=", "ndarray", "tensor"]),
        ({"input": torch.zeros(0, 3, 11, 14)}, ["input=", "(0, 3, 11, 14)", "N > 0"]),
        ({"input": torch.zeros(14)}, ["input=", "(14,)", "(N, C, H, W)"]),
        ({"input": ()}, ["input=", "tuple"]),
        ({"layer": 3}, ["saliency_layer=3", "name"]),
        ({"layer": True}, ["saliency_layer=True", "name"]),
        ({"layer": "feature"}, ["saliency_layer='feature'", "did you mean 'features'?"]),
        ({"layer": nn.Linear(6, 4)}, ["saliency_layer=Linear", "not part of the model"]),
        ({"resize": 7}, ["resize=7", "(width, height)"]),
        ({"resize": (7, 0)}, ["resize=(7, 0)", "(width, height)"]),
        ({"resize": (7, 7, 7)}, ["resize=(7, 7, 7)", "(width, height)"]),
        ({"resize": None}, ["resize=None", "(width, height)"]),
        ({"resize": True, "resize_mode": "cubic"}, ["resize_mode='cubic'", "bicubic"]),
        ({"smooth": float("nan")}, ["smooth=nan", ">= 0"]),
        ({"smooth": float("inf")}, ["smooth=inf", ">= 0"]),
        ({"smooth": -0.1}, ["smooth=-0.1", ">= 0"]),
        ({"smooth": "0.1"}, ["smooth='0.1'", ">= 0"]),
        ({"smooth": True}, ["smooth=True", ">= 0"]),
        ({"layout": "NHWC"}, ["layout='NHWC'", "channels_last"]),
        ({"layout": (4, 0)}, ["layout=(4, 0)", "(height, width)"]),
        ({"forward_kwargs": [1]}, ["forward_kwargs=[1]", "dict"]),
    ],
    ids=str,
)
@pytest.mark.parametrize("method", [m for m in METHODS if m.id in ("gradient", "activation", "guided_grad_cam")])
def test_errors_name_the_argument_the_value_and_what_is_accepted(method, options, words):
    model = cases.IN_PLACE.model()
    untouched = Untouched(model, torch.zeros(1))
    with pytest.raises(ValueError, match=r"=.*expected .*\.$") as error:
        explain(method, cases.IN_PLACE, model, **options)
    assert [word for word in words if word not in str(error.value)] == []
    untouched.check()


@pytest.mark.parametrize("method", METHODS)
def test_a_model_that_is_no_module_is_an_error(method):
    with pytest.raises(ValueError, match=r"model=.*expected"):
        method(lambda x: x, cases.IN_PLACE.input(), 1, "")


@pytest.mark.parametrize("method", METHODS)
def test_swapped_arguments_are_an_error(method):
    with pytest.raises(ValueError, match=r"(model|input)=.*expected"):
        method(cases.IN_PLACE.input(), cases.IN_PLACE.model(), 1, "")


@pytest.mark.parametrize("method", METHODS)
def test_a_layer_that_is_not_called_is_an_error(method):
    needs(method, "layer")
    model = cases.IN_PLACE.model()
    model.spare = nn.Conv2d(3, 3, 1)
    with pytest.raises(ValueError, match=r"saliency_layer='spare' .*expected"):
        explain(method, cases.IN_PLACE, model, layer="spare")


@pytest.mark.parametrize("method", TARGETED)
def test_a_layer_without_influence_on_the_score_is_an_error(method):
    needs(method, "layer")

    class Aside(cases.InPlace):
        def __init__(self) -> None:
            super().__init__()
            self.aside = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            self.aside(x)
            return self.scores(x)

    with pytest.raises(ValueError, match=r"saliency_layer='aside' .*gradient.*expected"):
        explain(method, cases.IN_PLACE, Aside().double(), layer="aside")


@pytest.mark.parametrize("method", METHODS)
def test_an_integer_input_has_no_saliency(method):
    class Embedded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(5, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.embed(x).mean((1, 2))

    with pytest.raises(ValueError, match=r"(input|saliency_layer)=.*expected"):
        method(Embedded(), torch.zeros(2, 3, 4, dtype=torch.long), 1, "")


@pytest.mark.parametrize("method", METHODS)
def test_debug_gives_the_same_map_and_the_probes(method):
    needs(method, "probes")
    result = explain(method, cases.IN_PLACE, debug=True)
    assert isinstance(result, tuple)
    close(result[0], explain(method, cases.IN_PLACE))
    names = ["" if name == "" else name for name, _ in cases.IN_PLACE.model().named_modules()]
    assert list(result[1]) == names
    assert result[1]["features"].data[0].shape[1:] == (6, 6, 7)
    assert len(result[1]["features"].data[0]) == 2 or "batch" in method.lacks


def test_models_are_copied_and_saved_after_a_call():
    """No hook, closure or context stays behind that could not be pickled or copied."""
    model = cases.IN_PLACE.model()
    before = set(vars(model))
    for method in GENERAL:
        explain(method, cases.IN_PLACE, model)
    twin = copy.deepcopy(model)
    assert set(vars(twin)) == before
    assert not any(isinstance(value, types.FunctionType) for value in vars(model).values())
    grad_cam = next(method for method in GENERAL if method.name == "grad_cam")
    assert torch.equal(grad_cam(twin, cases.IN_PLACE.input(), 1), explain(grad_cam, cases.IN_PLACE))
