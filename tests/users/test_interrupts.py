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

pytestmark = [
    pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers"),
    pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated"),
    # A handler may raise inside of a finaliser, which Python reports and goes on.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

CALLS: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "gradient": lambda model, x: saliency.gradient(model, x, 1),
    "guided_backprop": lambda model, x: saliency.guided_backprop(model, x, 1),
    "grad_cam": lambda model, x: saliency.grad_cam(model, x, 1),  # with a search of the layer, the first time
    "integrated_gradients": lambda model, x: saliency.integrated_gradients(model, x, 1, "2", n_steps=3),
    "feature_ablation": lambda model, x: saliency.feature_ablation(model, x, 1, "5", perturbations_per_eval=4),
}


@pytest.fixture(autouse=True)
def _no_callbacks_of_the_garbage_collector():
    """An exception that a handler raises inside of one, such as hypothesis's, ends there and interrupts nothing."""
    callbacks = gc.callbacks[:]
    gc.callbacks.clear()
    yield
    gc.callbacks[:] = callbacks


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
    assert interrupted


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_nothing_leaks_from_thousands_of_calls(name):
    interrupted, leaks = count_leaks(name, 750, KeyboardInterrupt)
    assert leaks == 0
    assert interrupted > 100


@pytest.mark.parametrize("name", ["gradient", "integrated_gradients"])
def test_signals_that_another_thread_sends(name):
    """Ctrl-C's own signal, which comes from outside, whatever the main thread does."""
    model, x = make_model(), torch.rand(1, 1, 5, 5)
    CALLS[name](model, x)
    before, tensors, interrupted = owned(model), values(model), 0
    for delay in delays(lambda: CALLS[name](model, x), 20):
        sender = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT))

        def run(sender: threading.Timer = sender) -> None:
            CALLS[name](model, x)
            sender.join()

        try:
            raised = interrupt(run, [], sender.start, sender.join)
        except KeyboardInterrupt as error:  # it came after the call
            raised = error
        interrupted += raised is not None
        assert owned(model) == before
        assert all(map(torch.equal, values(model), tensors))
    assert interrupted > 15


def test_a_time_limit_ends_the_call():
    """No fallback of ours takes its error for one of the model's own."""

    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.calls = nn.Conv2d(1, 2, 3), 0

        def forward(self, x: Tensor) -> Tensor:
            y = self.layer(x).mean((2, 3))
            self.calls += 1
            if self.calls == late:
                armed.append(True)
                signal.raise_signal(signal.SIGALRM)
            return y

    with handling(signal.SIGALRM, TimeoutError) as armed:
        for late in (1, 2, 3):
            model = Late()
            with pytest.raises(TimeoutError):
                saliency.integrated_gradients(model, torch.rand(1, 1, 5, 5), 1, "layer", n_steps=3)
            assert model.calls == late
            assert not model.layer._forward_hooks


def raise_all(numbers: list[int]) -> None:
    for number in numbers:
        signal.raise_signal(number)


def test_handlers_run_later_but_all_of_them_do():
    """Outside of the model they wait; a handler that does not raise changes nothing."""
    ran: list[object] = []
    numbers = [signal.SIGUSR1, signal.SIGALRM]
    before = [signal.signal(number, lambda number, frame: ran.append(number)) for number in numbers]
    try:
        with uninterrupted():
            raise_all(numbers[:1])
            assert ran == []
            with interruptible():
                assert ran == numbers[:1]
                raise_all(numbers[1:])
                assert ran == numbers
            with uninterrupted():
                raise_all(numbers)
            assert ran == numbers
        assert sorted(ran[2:]) == sorted(numbers)
        model = nn.Flatten()
        model.register_forward_hook(lambda module, args, output: raise_all(numbers))
        assert saliency.gradient(model, torch.ones(1, 1, 2, 2), 1).sum() == 1
        assert ran[4:] == numbers
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def test_all_that_waits_is_delivered_even_if_it_raises():
    errors = {signal.SIGUSR1: KeyError, signal.SIGUSR2: IndexError, signal.SIGALRM: TimeoutError}
    ran: list[int] = []

    def handler(number: int, frame: object) -> None:
        ran.append(number)
        raise errors[number]

    def call() -> None:
        with uninterrupted():
            raise_all(list(errors))

    before = {number: signal.signal(number, handler) for number in errors}
    try:
        with pytest.raises(tuple(errors.values())):
            call()
        assert sorted(ran) == sorted(errors)
        assert all(signal.getsignal(number) is handler for number in errors)
    finally:
        for number, own in before.items():
            signal.signal(number, own)


def test_a_handler_that_the_model_puts_in_stays():
    def other(number: int, frame: object) -> None:
        ran.append(number)

    ran: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: None)
    try:
        with uninterrupted():
            signal.signal(signal.SIGUSR1, other)
        assert signal.getsignal(signal.SIGUSR1) is other
        with uninterrupted():
            ours = signal.getsignal(signal.SIGUSR1)
        signal.signal(signal.SIGUSR1, ours)  # as the model does that put its own in front of ours, and back too late
        raise_all([signal.SIGUSR1])
        assert ran == [signal.SIGUSR1]
        with uninterrupted():
            raise_all([signal.SIGUSR1])
        assert ran == [signal.SIGUSR1] * 2
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_other_threads_leave_signals_alone():
    model, x, seen = make_model(), torch.rand(1, 1, 5, 5), []
    before = signal.getsignal(signal.SIGINT)

    def reduce(x: Tensor) -> Tensor:
        seen.append(signal.getsignal(signal.SIGINT))
        return x.grad

    thread = threading.Thread(
        target=saliency.saliency, args=(model, x, 1), kwargs={"gradient_to_saliency": lambda x: reduce(x)}
    )
    thread.start()
    thread.join()
    assert seen == [before]
