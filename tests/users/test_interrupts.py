"""Whatever interrupts a call, Ctrl-C or a time limit, and wherever it does: all that the call changed is put back."""

import gc
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo.eval_frame
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

import saliency
from saliency.engine import state
from saliency.engine.interrupts import interruptible, uninterrupted

pytestmark = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers")

CALLS: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "gradient": lambda model, x: saliency.gradient(model, x, 1),
    "guided_backprop": lambda model, x: saliency.guided_backprop(model, x, 1),
    "grad_cam": lambda model, x: saliency.grad_cam(model, x, 1),  # with a search of the layer, the first time
    "integrated_gradients": lambda model, x: saliency.integrated_gradients(model, x, 1, "2", n_steps=3),
    "feature_ablation": lambda model, x: saliency.feature_ablation(model, x, 1, "5", perturbations_per_eval=4),
}


class Stopped(BaseException):
    """What a handler raises."""


def make_model() -> nn.Module:
    """Dropout and batch norm in training mode, parts in evaluation mode, hooks of the user's, a frozen layer."""
    model = nn.Sequential(
        *(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Dropout(), nn.Conv2d(2, 2, 1), nn.ReLU(inplace=True)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.utils.weight_norm(nn.Linear(2, 2)), nn.BatchNorm1d(2)),
    ).train()
    model[3].eval()
    model[9].eval()
    model[0].requires_grad_(False)
    model[2].register_forward_hook(lambda module, args, output: output * 1)
    model.register_forward_pre_hook(lambda module, args: (args[0] + 0,))
    return model


def owned(model: nn.Module) -> list[object]:
    """All that a call may change, but for values of tensors."""
    modules = list(model.modules())
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs")
    return [
        [module.training for module in modules],
        [[list(getattr(module, name)) for name in hooks] for module in modules],
        [(p.requires_grad, p.grad, id(p)) for p in model.parameters()],
        [id(model[8].weight), id(torch.relu), id(nn.functional.relu)],
        (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")),
        (list(map(id, _get_current_function_mode_stack())), list(map(id, _get_current_dispatch_mode_stack()))),
        (torch.get_default_device(), torch.get_default_dtype(), torch._dynamo.eval_frame._stance.stance),
        (state._held, state._lock.locked(), signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGALRM)),
        (random.getstate(), np.random.get_state()[2], torch._C._autograd._saved_tensors_hooks_is_enabled()),
    ]


def values(model: nn.Module) -> list[Tensor]:
    return [x.detach().clone() for x in (*model.parameters(), *model.buffers(), torch.get_rng_state())]


@contextmanager
def handling(number: int, error: type[BaseException]) -> Iterator[list[bool]]:
    """The handler raises while the list that is given holds something."""
    armed: list[bool] = []

    def handler(number: int, frame: object) -> None:
        if armed:
            armed.clear()
            raise error

    before = signal.signal(number, handler)
    try:
        yield armed
    finally:
        armed.clear()
        signal.signal(number, before)


def interrupt(run: Callable[[], Any], armed: list[bool], start: Callable[[], Any], stop: Callable[[], Any]) -> Any:
    """What was raised, with its traceback, which keeps alive what the frames of the call hold."""
    try:
        try:
            armed.append(True)
            start()
            run()
        finally:
            armed.clear()
            stop()
    except (KeyboardInterrupt, TimeoutError, Stopped) as error:
        return error
    return None


def delays(run: Callable[[], Any], count: int) -> Iterator[float]:
    """Times at which to interrupt; half of them near the end, where things are put back."""
    took = []
    for _ in range(5):
        begin = time.perf_counter()
        run()
        took.append(time.perf_counter() - begin)
    draw = random.Random(0)
    for n in range(count):
        yield max(1e-6, sorted(took)[2] * (draw.uniform(0.02, 1.02) if n % 2 else draw.uniform(0.75, 1.02)))


def count_leaks(name: str, count: int, error: type[BaseException]) -> tuple[int, int]:
    """How many calls were interrupted, and after how many of those something was not as before."""
    model, x = make_model(), torch.rand(1, 1, 5, 5)
    torch.compiler.set_stance("default")

    def run() -> Any:
        return CALLS[name](model, x)

    interrupted = leaks = 0
    expected = run()
    with handling(signal.SIGALRM, error) as armed:
        before, tensors = owned(model), values(model)
        for delay in delays(run, count):
            raised = interrupt(
                run,
                armed,
                lambda delay=delay: signal.setitimer(signal.ITIMER_REAL, delay),
                lambda: signal.setitimer(signal.ITIMER_REAL, 0),
            )
            interrupted += raised is not None
            leaks += owned(model) != before or not all(map(torch.equal, values(model), tensors))
            del raised
    assert torch.equal(run(), expected)
    return interrupted, leaks


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("error", [KeyboardInterrupt, TimeoutError, Stopped])
def test_nothing_leaks(name, error):
    interrupted, leaks = count_leaks(name, 24, error)
    assert leaks == 0
    assert interrupted > 4


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_nothing_leaks_from_thousands_of_calls(name):
    interrupted, leaks = count_leaks(name, 750, KeyboardInterrupt)
    assert leaks == 0
    assert interrupted > 100
