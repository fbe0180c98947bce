"""The code blocks of a page: found, and run from the top in one namespace."""

import re
import warnings
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

NOT_RUN = "not run"  # how a comment in front of a block begins, as in <!-- not run: downloads the weights -->
_BLOCK = re.compile(
    rf"^(?:<!-- (?P<note>{NOT_RUN}.*?) -->\n)?```(?P<kind>[^\n`]*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)


class Block(NamedTuple):
    """A block, whether it is run or compiled only, and the line that it begins at."""

    kind: str  # python, {picture}, sh, text, ...
    code: str
    is_run: bool
    line: int


def blocks(text: str) -> Iterator[Block]:
    """Every fenced block of a page in Markdown, from the top.

    >>> [(block.kind, block.is_run) for block in blocks("<!-- not run: slow -->\\n```python\\n1\\n```\\n")]
    [('python', False)]
    """
    for found in _BLOCK.finditer(text):
        kind = found["kind"].split(" ")[0]
        yield Block(kind, found["code"], found["note"] is None, text.count("\n", 0, found.start("code")))


def run(path: Path) -> list[Any]:
    """Run what a page says in Python, in one namespace; return the ``picture`` of each block of the kind {picture}.

    A block of the kind {picture} leaves a figure, or a picture of Pillow, under that name. What is printed is dropped,
    and what a page does to the filter of warnings ends with it.
    """
    names: dict[str, Any] = {"__name__": "__page__"}
    pictures = []
    with warnings.catch_warnings(), redirect_stdout(StringIO()):
        for block in blocks(path.read_text("utf-8")):
            if block.kind not in ("python", "{picture}"):
                continue
            compiled = compile("\n" * block.line + block.code, str(path), "exec")
            if block.is_run:
                exec(compiled, names)
            if block.kind == "{picture}":
                pictures.append(names.pop("picture"))
    return pictures
