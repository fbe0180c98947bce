"""One run a folder: files that only one process at a time can hold."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def holding(path: Path) -> Iterator[IO[bytes]]:
    """Open a file, made where it is missing, unbuffered and for this process alone, until the block or process ends.

    ``ValueError`` where another process holds it.
    """
    with path.open("a+b", buffering=0) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"out={str(path.parent)!r} is in use: another process holds {path.name}; "
                "a folder that no run is writing to is accepted."
            ) from error
        yield file
