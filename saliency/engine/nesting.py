"""Nesting: a call may run inside another, by a hook or a reduction; what the outer one has opened leaves it alone."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack, _pop_mode, _push_mode

from saliency.engine.interrupts import end_suspended, is_interrupted

OUTSIDE = object()  # stands for no call


class _Here(threading.local):
    """The state of this thread: its open calls, and the innermost call that is inside a rule (where rules do not
    apply).
    """

    call: object = None
    in_rule: object = OUTSIDE

    def __init__(self) -> None:
        self.open: list[object] = []  # calls may overlap without being nested, in generators


here = _Here()


class Opened(threading.local):
    """In which call this thread has opened a context, which other threads may have open too."""

    call: object = None


@contextmanager
def own_call() -> Iterator[None]:
    """Begin a call. Hooks and contexts of other open calls leave alone what runs inside.

    The modes that were open are restored afterwards: PyTorch closes them while it handles a function, and if it is
    interrupted there, they stay closed.
    """
    own, in_rule, modes = object(), here.in_rule, _get_current_function_mode_stack()
    here.open.append(own)
    here.call = own
    try:
        yield
    except BaseException as error:
        if is_interrupted():
            end_suspended(error)
        raise
    finally:
        here.open = [other for other in here.open if other is not own]  # it may end in another thread
        here.call, here.in_rule = here.open[-1] if here.open else None, in_rule
        if _get_current_function_mode_stack() != modes:
            _replace_modes(modes)


class OwnMode(TorchFunctionMode):
    """A mode that can be closed in any order: modes may overlap without being nested, or be closed already."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        modes = _get_current_function_mode_stack()
        if self in modes:
            del modes[len(modes) - 1 - modes[::-1].index(self)]  # it may be open twice
            _replace_modes(modes)


def _replace_modes(modes: list[TorchFunctionMode]) -> None:
    for _ in _get_current_function_mode_stack():
        _pop_mode()
    for mode in modes:
        _push_mode(mode)
