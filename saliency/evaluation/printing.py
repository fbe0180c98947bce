"""Printing: text that came from a file or an error, as a terminal can show it."""


def printable(text: str) -> str:
    """The text with its control characters written out: names from a file must not move a terminal's cursor.

    >>> printable("a\x1b[2Jb")
    'a\\\\x1b[2Jb'
    """
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def one_line(error: BaseException) -> str:
    """What an error says, in one line that can be printed."""
    return printable(" ".join(str(error).split()))
