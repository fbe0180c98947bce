"""What a call changes is put back: also when calls overlap, and when they fail."""

import random
import threading

import numpy as np
import pytest
import torch
from torch import nn

from saliency.engine import state
from saliency.engine.nesting import here
from saliency.engine.state import evaluating, model_device, model_dtype, own_copy


def mixed() -> nn.Sequential:
    """Modules of both modes, in no pattern that one call of train() or eval() could make."""
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.BatchNorm1d(3), nn.Dropout()), nn.ReLU()).train()
    model[1].eval()
    model[1][1].train()
    return model


def flags(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt, GeneratorExit])
def test_every_module_gets_its_own_flag_back(error):
    model = mixed()
    before = flags(model)
    assert before == [True, True, False, False, True, True]

    def call() -> None:
        with evaluating(model):
            assert not any(flags(model))
            if error is not None:
                raise error

    if error is None:
        call()
    else:
        with pytest.raises(error):
            call()
    assert flags(model) == before
    assert state._held == {}


def test_train_and_eval_are_not_called():
    """Networks override them, to freeze a part for example."""

    class Frozen(nn.Sequential):
        def train(self, mode: bool = True) -> nn.Module:
            raise AssertionError

    model = Frozen(nn.Dropout())
    with evaluating(model):
        assert flags(model) == [False, False]
    assert flags(model) == [True, True]


@pytest.mark.parametrize("order", ["abab", "abba", "abcacb", "abccab"])
def test_overlapping_calls_stay_in_evaluation_mode_until_the_last_one_ends(order):
    """In any order of beginnings and ends; b is about a part of the model only."""
    model = mixed()
    before = flags(model)
    about = {"a": model, "b": model[1], "c": model}
    calls: dict = {}
    for name in order:
        if name in calls:
            calls.pop(name).__exit__(None, None, None)
        else:
            calls[name] = evaluating(about[name])
            calls[name].__enter__()
        for call in calls:
            assert not any(flags(about[call]))
    assert flags(model) == before
    assert state._held == {}
    assert here.call is None
    torch.set_grad_enabled(True)  # modes that are not undone in reverse order are PyTorch's own matter


def test_overlapping_threads():
    model = mixed()
    before = flags(model)
    inside, leave = threading.Barrier(2), threading.Event()
    seen = []

    def other() -> None:
        with evaluating(model):
            inside.wait(10)
            leave.wait(10)
            seen.append(any(flags(model)))

    thread = threading.Thread(target=other, daemon=True)
    thread.start()
    with evaluating(model):
        inside.wait(10)
    assert not any(flags(model))
    leave.set()
    thread.join(10)
    assert seen == [False]
    assert flags(model) == before


def test_random_states_are_given_back():
    model = nn.ReLU()
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    with evaluating(model):
        torch.rand(3), random.random(), np.random.rand()
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


@pytest.mark.parametrize("training", [True, False])
def test_buffers_that_the_model_changes_itself_are_given_back(training):
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))
            self.register_buffer("last", torch.zeros(2))
            self.register_buffer("empty", None)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            self.last = x
            return x

    model = Counter().train(training)
    calls, last = model.calls, model.last
    with evaluating(model):
        model(torch.ones(2))
    assert model.calls is calls
    assert model.last is last
    assert calls.item() == 0
    assert last.tolist() == [0, 0]
    assert model.training is training


def test_the_modes_of_the_caller():
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            with evaluating(nn.ReLU()):
                assert not torch.is_grad_enabled()
                torch.set_grad_enabled(True)
            assert torch.is_grad_enabled() is grad
    with torch.inference_mode():
        with evaluating(nn.ReLU()):
            assert not torch.is_inference_mode_enabled()
            assert not torch.ones(1).is_inference()
        assert torch.is_inference_mode_enabled()


def test_autocast_goes_on_but_caches_nothing():
    with torch.autocast("cpu", torch.bfloat16):
        with evaluating(nn.Linear(1, 1)):
            assert torch.is_autocast_enabled("cpu")
            assert torch.get_autocast_dtype("cpu") == torch.bfloat16
            assert not torch.is_autocast_cache_enabled()
        assert torch.is_autocast_cache_enabled()
    with evaluating(nn.Linear(1, 1)):
        assert not torch.is_autocast_enabled("cpu")


def test_own_copy_is_a_leaf_of_its_own():
    x = (torch.ones(2, 3, requires_grad=True) * 2).t()
    copy = own_copy(x)
    assert not copy.requires_grad
    assert copy.grad_fn is None
    copy.mul_(7)
    assert x.tolist() == [[2, 2], [2, 2], [2, 2]]
    with torch.inference_mode():
        inside = torch.ones(2)
    assert not own_copy(inside).is_inference()


def test_device_and_dtype_of_a_model():
    assert model_device(nn.ReLU()) == torch.device("cpu")
    assert model_device(nn.Linear(1, 1, device="meta")) == torch.device("meta")
    assert model_device(nn.BatchNorm1d(1, affine=False, device="meta")) == torch.device("meta")
    assert model_dtype(nn.Linear(1, 1).half(), torch.ones(1)) == torch.float16
    assert model_dtype(nn.ReLU(), torch.ones(1, dtype=torch.float64)) == torch.float64
