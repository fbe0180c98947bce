"""The folder of a run: it belongs to one run at a time, and what is in it is whole."""

import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from saliency.evaluation.running.locks import holding
from saliency.evaluation.running.ranks import Ranks
from saliency.evaluation.running.rows import cut_last_line, row_files


class RankError(ValueError):
    """What stands in the way of one rank only: the others, and rank 0, have not said so."""


class UnwritableError(ValueError):
    """Nothing can be written to the folder: what is in it can still be read."""


@contextmanager
def owning(out: Path, ranks: Ranks, plan: str) -> Iterator[IO[bytes]]:
    """Give this rank's file of rows, once rank 0 has the folder for this run alone and has cut off what is not whole.

    ``plan`` has to be the same on all ranks. ``ValueError`` where another run holds the folder or one of its files,
    ``UnwritableError`` where nothing can be written, ``RankError`` where this rank sees another folder or has another
    plan than rank 0.
    """
    with ExitStack() as stack:
        said: dict[str, str] = {}
        if ranks.rank == 0:
            try:
                said = {"token": _take(out, stack), "plan": plan}
            except (ValueError, OSError) as error:
                ranks.share("folder", {"error": str(error), "unwritable": isinstance(error, UnwritableError)})
                raise
        said = ranks.share("folder", said)
        _compare(out, ranks.rank, said, plan)
        yield stack.enter_context(holding(out / f"rows-{ranks.rank}.jsonl"))


def _take(out: Path, stack: ExitStack) -> str:
    """Take the folder; return what it is known by to this run."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = stack.enter_context(holding(out / "lock"))
        # A rank of a run that was killed may still be writing, though its rank 0 has gone and left the lock.
        for path in row_files(out):
            with holding(path) as file:
                cut_last_line(file)
    except OSError as error:
        reason, shown = error.strerror or type(error).__name__, str(out)
        raise UnwritableError(
            f"out={shown!r} cannot be used ({reason}); a folder of one's own is accepted, or that of a finished run."
        ) from error
    token = secrets.token_hex(8)
    lock.truncate(0)
    lock.write(token.encode())
    os.fsync(lock.fileno())
    return token


def _compare(out: Path, rank: int, said: dict[str, Any], plan: str) -> None:
    if "error" in said:
        raise (UnwritableError if said["unwritable"] else ValueError)(said["error"])
    lock = out / "lock"
    if not lock.is_file() or lock.read_text("utf-8") != said["token"]:
        raise RankError(f"out={str(out)!r} of rank {rank} is not that of rank 0; a folder that all share is accepted.")
    if plan != said["plan"]:
        raise RankError(
            f"rank {rank} would compute other results than rank 0; "
            "equal versions, devices, data and arguments on all ranks are accepted."
        )
