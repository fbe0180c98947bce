"""Interrupts: signals such as Ctrl-C's are deferred while a call changes state that it has to restore.

Python may run a signal handler between any two lines, so also between a change and the line that registers its undo, or
during clean-up. While a call is open, handlers run only in the model and in functions that the user passed in;
elsewhere they are deferred, and run as soon as they may. Once a handler has raised, all others are deferred: what
follows is clean-up. Python runs handlers in the main thread alone, so calls in other threads need none of this.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import _GeneratorContextManager, contextmanager
from inspect import GEN_SUSPENDED, getgeneratorstate
from traceback import walk_tb
from types import FrameType
from typing import TypeAlias

_Handler: TypeAlias = Callable[[int, FrameType | None], object]

_NAMES = "SIGINT SIGTERM SIGHUP SIGALRM SIGVTALRM SIGPROF SIGUSR1 SIGUSR2 SIGCHLD SIGBREAK"
_SIGNALS = tuple(getattr(signal, name) for name in _NAMES.split() if hasattr(signal, name))


class _Signals:
    """The user's handlers, while ours is installed in front of them."""

    def __init__(self) -> None:
        self.handlers: dict[int, _Handler] = {}
        self.taken: list[int] = []  # the signals whose handler is ours
        self.waiting: list[int] = []
        self.held = False
        self.raised = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Our handler: call the user's, or defer it."""
        if self.held:
            self.waiting.append(number)
            return
        self.held = self.raised = bool(self.taken)  # remains set if the handler raises: what follows is clean-up
        self.handlers[number](number, frame)
        self.held = self.raised = False

    def take(self) -> None:
        """Install ours in front of all handlers that are functions; the others end the process or do nothing."""
        found = {number: own for number in _SIGNALS if callable(own := signal.getsignal(number)) and own != self.handle}
        self.handlers.update(found)
        taken = list(found)
        self.taken, self.held, self.raised = taken, True, False
        try:
            for number in taken:
                signal.signal(number, self.handle)
        except BaseException:  # a handler not yet replaced has raised
            self.give_back()
            raise

    def give_back(self) -> None:
        """Restore every handler, even if one that is restored already raises; then run the deferred ones."""
        try:
            while self.taken:
                number = self.taken[-1]
                if signal.getsignal(number) == self.handle:  # else the model has installed its own
                    signal.signal(number, self.handlers[number])
                self.taken.pop()
        finally:
            if self.taken:
                self.give_back()
            else:
                self.held = False
                self.deliver()

    def deliver(self) -> None:
        """Run the deferred handlers, up to the first that raises while a call is open."""
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
    """Has a handler raised in this call? Then nothing else is tried: the call has to end."""
    return _signals.raised and _runs_handlers()


def end_suspended(error: BaseException) -> None:
    """Close generator-based context managers that were interrupted while being entered or left.

    Otherwise Python closes them when the traceback is freed: much later, and they would restore stale state then.
    """
    managers = [frame.f_locals.get("self") for frame, _ in walk_tb(error.__traceback__)]
    for manager in reversed(managers):
        generator = getattr(manager, "gen", None) if isinstance(manager, _GeneratorContextManager) else None
        if generator is not None and getgeneratorstate(generator) == GEN_SUSPENDED:
            generator.close()


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Run no signal handler inside, except where it is :func:`interruptible`."""
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
    """Code that changes nothing that has to be restored, and may take long: deferred signals are delivered here."""

    def __enter__(self) -> None:
        if _runs_handlers():
            self._before, _signals.held = _signals.held, False
            if _signals.waiting:
                _signals.deliver()

    def __exit__(self, *error: object) -> None:
        if _runs_handlers():
            _signals.held = self._before
