"""Printing: text that came from a file or an error, as a terminal can show it, and the progress of a run."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager


def printable(text: str) -> str:
    """The text with its control characters written out: names from a file must not move a terminal's cursor.

    >>> printable("a\x1b[2Jb")
    'a\\\\x1b[2Jb'
    """
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def one_line(error: BaseException | str) -> str:
    """What an error says, in one line that can be printed."""
    return printable(" ".join(str(error).split()))


def describe_error(error: BaseException) -> str:
    """An error in one line.

    >>> describe_error(ValueError("two\\nlines"))
    'ValueError: two lines'
    """
    return f"{type(error).__name__}: {one_line(error)[:500]}"


class Figure:
    """A running mean with a name.

    >>> figure = Figure("hits")
    >>> figure.add([1, None, 0])
    >>> str(figure)
    'hits 0.500'
    """

    def __init__(self, name: str) -> None:
        self.name, self.total, self.count = name, 0.0, 0

    def add(self, scores: Iterable[float | None]) -> None:
        """Count scores; None is none."""
        known = [score for score in scores if score is not None]
        self.total, self.count = self.total + sum(known), self.count + len(known)

    def __str__(self) -> str:
        return f"{self.name} {self.total / self.count:.3f}" if self.count else self.name


@contextmanager
def progress_bar(total: int, done: int) -> Iterator[Callable[[int, str], None]]:
    """Give ``show(done, figure)``, which moves a bar on the terminal; it does nothing without one, or without tqdm."""
    try:
        from tqdm import tqdm
    except ImportError:
        yield lambda done, figure: None
        return
    with tqdm(total=total, initial=done, unit="case", disable=None) as bar:

        def show(done: int, figure: str) -> None:
            bar.set_postfix_str(figure, refresh=False)
            bar.update(done - bar.n)

        yield show
