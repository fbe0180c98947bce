"""Notices: what a call has to tell the user besides its result, as warnings at the end of the call."""

import os
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeAlias
from weakref import ReferenceType, ref

import torch
from torch import Tensor

# From values to the kind and the text of a notice; ``None`` if they are as expected.
Judge: TypeAlias = Callable[[list[float]], tuple[str, str] | None]
Advise: TypeAlias = Callable[[list[float]], str]

_PACKAGE = str(Path(__file__).parents[1]) + os.sep


def _nothing(values: list[float]) -> str:
    return ""


class _Look(NamedTuple):
    """A few values, judged once they are known; ``advise`` adds what only the call itself can tell."""

    values: Tensor
    judge: Judge
    advise: Advise


class _Line(NamedTuple):
    """A line of the user's code, with its module's registry of warnings already shown."""

    filename: str
    number: int
    module: str
    registry: dict[str | tuple[str, type[Warning], int], int]

    def warn(self, text: str) -> None:
        warnings.warn_explicit(text, UserWarning, self.filename, self.number, self.module, self.registry)


class _Pending(NamedTuple):
    """Values on their way from a device, with the line that called."""

    look: _Look
    arrived: torch.Event
    line: _Line


_MOST = 100
_lock = threading.Lock()
_pending: deque[_Pending] = deque(maxlen=_MOST)  # the oldest are dropped if no call follows
_advised: dict[tuple[str, int, int, str], tuple[ReferenceType[object], str]] = {}


class Notices:
    """The notices of one call, the first of each kind.

    Values on the CPU are judged when the call reports. Those on another device are copied without waiting, and judged
    when they have arrived and a later call reports. Those on the meta device are ignored.

    >>> notices = Notices()
    >>> notices.look(torch.zeros(1), lambda values: None if any(values) else ("zero", "the map is zero"))
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     notices.report()
    >>> str(caught[0].message)
    'the map is zero.'
    """

    def __init__(self, model: object = None) -> None:
        self._model = ref(self if model is None else model)
        self._texts: dict[str, str] = {}
        self._looks: list[_Look] = []

    def add(self, kind: str, text: str) -> None:
        """Add a notice that is already known."""
        self._texts.setdefault(kind, text)

    def look(self, values: Tensor, judge: Judge, advise: Advise = _nothing) -> None:
        """Add what ``judge`` says of values (N,), if anything, followed by what ``advise`` says."""
        if not values.is_meta:
            self._looks.append(_Look(values, judge, advise))

    def clear(self) -> None:
        """Forget all notices, because the call starts again."""
        self._texts.clear()
        self._looks.clear()

    def report(self) -> None:
        """Warn at the line that called the package, first of what has arrived since an earlier call."""
        for pending in _take_arrived() if _pending else ():
            if earlier := pending.look.judge(pending.look.values.tolist()):
                pending.line.warn(f"an earlier call: {earlier[1]}.")
        for look in self._looks:
            if look.values.device.type != "cpu":
                _send(look)
            elif (found := look.judge(values := look.values.tolist())) and found[0] not in self._texts:
                self._texts[found[0]] = f"{found[1]}{self._advice(look, found[1], values)}."
        told = list(self._texts.values())
        self.clear()
        for text in told:
            _calling_line().warn(text)

    def _advice(self, look: _Look, text: str, values: list[float]) -> str:
        """The advice, asked for once per line and model: it may cost a pass, and a line's warning is shown once."""
        line, model = _calling_line(), self._model()
        key = (line.filename, line.number, id(model), text)
        asked, advice = _advised.get(key, (None, ""))
        if asked is None or asked() is not model:  # a deleted model may have had the same id
            if len(_advised) >= _MOST:
                _advised.clear()
            advice = look.advise(values)
            _advised[key] = self._model, advice
        return advice


def _send(look: _Look) -> None:
    """Start copying values from their device. The advice is dropped: what it needs may be large."""
    copied = _Look(look.values.detach().to("cpu", non_blocking=True), look.judge, _nothing)
    arrived = torch.Event(look.values.device)
    arrived.record()
    with _lock:
        _pending.append(_Pending(copied, arrived, _calling_line()))


def _take_arrived() -> list[_Pending]:
    with _lock:
        done = [(pending, pending.arrived.query()) for pending in _pending]
        _pending.clear()
        _pending.extend(pending for pending, arrived in done if not arrived)
    return [pending for pending, arrived in done if arrived]


def _calling_line() -> _Line:
    """The line of user code that called the package."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
    own = frame.f_globals
    registry = own.setdefault("__warningregistry__", {})
    return _Line(frame.f_code.co_filename, frame.f_lineno, own.get("__name__", "<string>"), registry)
