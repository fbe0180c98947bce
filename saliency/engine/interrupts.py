"""Interrupts: signals, such as Ctrl-C's, wait while a call changes what it has to put back.

A handler that raises does so between any two lines, so also between a change and the line that registers its undo, or
inside of the clean-up. While a call is open, handlers run where the model does, and what it was given by the user, and
nowhere else: elsewhere they wait, and run as soon as they may. Once one has raised, all others wait: what follows is
clean-up. Python runs handlers in the main thread alone, so calls of other threads need none of this.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import _GeneratorContextManager, contextmanager
from inspect import GEN_SUSPENDED, getgeneratorstate
from traceback import walk_tb
from types import FrameType
from typing import Any, TypeAlias

_Handler: TypeAlias = Callable[[int, FrameType | None], Any]

_NAMES = "SIGINT SIGTERM SIGHUP SIGALRM SIGVTALRM SIGPROF SIGUSR1 SIGUSR2 SIGCHLD SIGBREAK"
_SIGNALS = tuple(getattr(signal, name) for name in _NAMES.split() if hasattr(signal, name))


class _Signals:
    """The handlers of signals, while ours stands in front of them."""

    def __init__(self) -> None:
        self.handlers: dict[int, _Handler] = {}
        self.taken: list[int] = []  # whose handler is ours
        self.waiting: list[int] = []
        self.held = False
        self.raised = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Our handler: hand on to the user's, or note that it has to run later."""
        if self.held:
            self.waiting.append(number)
            return
        self.held = self.raised = bool(self.taken)  # stays so if the handler raises: what follows is clean-up
        self.handlers[number](number, frame)
        self.held = self.raised = False

    def take(self) -> None:
        """Stand in front of all handlers that are functions; the rest ends the process, or does nothing."""
        found = {number: handler for number in _SIGNALS if callable(handler := signal.getsignal(number))}
        found = {number: handler for number, handler in found.items() if handler != self.handle}
        self.handlers.update(found)
        taken = list(found)
        self.taken, self.held, self.raised = taken, True, False
        try:
            for number in taken:
                signal.signal(number, self.handle)
        except BaseException:  # one that had not been taken has raised
            self.give_back()
            raise

    def give_back(self) -> None:
        """Give every handler its signal back, even if one that has it already raises; run those that have waited."""
        try:
            while self.taken:
                number = self.taken[-1]
                if signal.getsignal(number) == self.handle:  # else the model has put in its own
                    signal.signal(number, self.handlers[number])
                self.taken.pop()
        finally:
            if self.taken:
                self.give_back()
            else:
                self.held = False
                self.deliver()

    def deliver(self) -> None:
        """Run the handlers that have waited, up to the first that raises while a call is open."""
        try:
            while self.waiting and not self.held:
                signal.raise_signal(self.waiting.pop())
        finally:
            if self.waiting and not self.held:
                self.deliver()


_signals = _Signals()


def _runs_handlers() -> bool:
    return threading.current_thread() is threading.main_thread()


def is_interrupted() -> bool:
    """Has a handler raised in this call? Then no other way is tried: the call has to end."""
    return _signals.raised and _runs_handlers()


def end_suspended(error: BaseException) -> None:
    """Let generators end now that are context managers, and were interrupted while they were entered or left.

    Python lets them end when the traceback goes: much later, and they put back what was there then.
    """
    managers = [frame.f_locals.get("self") for frame, _ in walk_tb(error.__traceback__)]
    for manager in reversed(managers):
        generator = getattr(manager, "gen", None) if isinstance(manager, _GeneratorContextManager) else None
        if generator is not None and getgeneratorstate(generator) == GEN_SUSPENDED:
            generator.close()


@contextmanager
def uninterrupted() -> Iterator[None]:
    """No handler of a signal runs inside, except where it is :func:`interruptible`."""
    if not _runs_handlers():
        yield
    elif _signals.taken:
        before, _signals.held = _signals.held, True
        try:
            yield
        finally:
            _signals.held = before
            _signals.deliver()
    else:
        _signals.take()
        try:
            yield
        finally:
            _signals.give_back()


class interruptible:
    """Code that changes nothing which has to be put back, and may take long: signals that have waited arrive here."""

    def __enter__(self) -> None:
        if _runs_handlers():
            self._before, _signals.held = _signals.held, False
            if _signals.waiting:
                _signals.deliver()

    def __exit__(self, *error: object) -> None:
        if _runs_handlers():
            _signals.held = self._before
