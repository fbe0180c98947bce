"""What commands are parsed by, and what they print."""

import argparse
import sys
from typing import NoReturn

from saliency.evaluation.printing import printable


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, written by :func:`main`."""

    def error(self, message: str) -> NoReturn:
        """Raise :class:`ValueError` instead of printing the usage."""
        raise ValueError(f"{message}; see {self.prog} --help.")


def positive(text: str) -> int:
    """Return the whole number of at least 1 that an argument of the command line stands for."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
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
