"""The parser of the commands, and their output."""

import argparse
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import NoReturn

from saliency.evaluation.printing import printable
from saliency.networks.models import DEFAULT
from saliency.networks.names import unknown


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, written by :func:`main`."""

    def error(self, message: str) -> NoReturn:
        """Raise :class:`ValueError` instead of printing the usage."""
        raise ValueError(f"{message}; see {self.prog} --help.")

    def parse_known_args(  # type: ignore[override]  # of a command too, whose options are not its parser's parent's
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse; an unknown argument is an error that names the nearest option."""
        found, rest = super().parse_known_args(args, namespace)
        if rest:
            near = get_close_matches(rest[0].partition("=")[0], [*self._option_string_actions], n=1)
            self.error(f"unrecognized arguments: {' '.join(rest)}{f' (did you mean {near[0]}?)' if near else ''}")
        return found, rest

    def _check_value(self, action: argparse.Action, value: str) -> None:
        """Raise ``ValueError`` for anything but the choices, with the nearest one."""
        if action.choices is not None and value not in action.choices:
            argument = action.option_strings[0].strip("-").replace("-", "_") if action.option_strings else "command"
            names = [*map(str, action.choices)]
            raise unknown(argument, value, names, f"expected one of {', '.join(names)}")


def add_network_files(add: Callable[..., object]) -> None:
    """The arguments ``--weights`` and ``--import``, which say where a network comes from."""
    add("--weights", default=DEFAULT, metavar="DEFAULT|FILE", help="published weights, or the file of a state dict")
    add(
        "--import",
        dest="imported",
        action="append",
        metavar="MODULE[:BUILD]",
        help="your own network, which BUILD returns; or a module that adds metrics, data sets, methods; repeatable",
    )


def positive(text: str) -> int:
    """Return the whole number of at least 1 that an argument of the command line stands for."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def numbers(text: str) -> tuple[float, ...] | float:
    """Return the number, or the numbers between commas, that an argument of the command line stands for.

    >>> numbers("0.5"), numbers("0.485,0.456,0.406")
    (0.5, (0.485, 0.456, 0.406))
    """
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number, or numbers between commas") from error
    return found[0] if len(found) == 1 else found


def say(text: str) -> None:
    """Write a line to stdout."""
    sys.stdout.write(f"{printable(text)}\n")
