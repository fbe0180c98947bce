"""The processes that share a run, as ``torchrun`` starts them, and its folder, which belongs to one run at a time."""

import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

from torch.distributed import HashStore, PrefixStore, Store  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from saliency.evaluation.running.store import cut_last_line, result_files

Item = TypeVar("Item")

POLL = 0.2  # seconds between two looks at how far the others are


class RankError(ValueError):
    """An error that this rank alone raises."""


class UnwritableError(ValueError):
    """The folder cannot be written to, but its contents can still be read."""


class Ranks(NamedTuple):
    """This process's ``rank`` of ``size`` processes, and their store."""

    rank: int
    size: int
    store: Store

    def share(self, name: str, value: object = None) -> Any:
        """The value that rank 0 published under this name, as JSON, on every rank."""
        if self.rank == 0:
            self.store.set(name, json.dumps(value))
        return json.loads(self.store.get(name))

    def add(self, name: str, amount: int) -> int:
        """Add to a counter shared by all ranks, and return its new value."""
        return int(self.store.add(name, amount))

    def wait(self, name: str) -> Iterator[None]:
        """Wait until all ranks have added to a counter, yielding repeatedly in the meantime.

        Where the store is gone because the process that kept it has ended, ``torch.distributed.DistError`` is raised.
        """
        while self.add(name, 0) < self.size:
            yield
            time.sleep(POLL)

    def divide(self, items: Sequence[Item]) -> Iterator[Item]:
        """Yield items that no other rank gets, one at a time on demand, so faster ranks process more."""
        while (place := self.add("taken", 1) - 1) < len(items):
            yield items[place]


def join_ranks() -> Ranks:
    """The ranks of this run: those that ``torchrun`` put into the environment, or this process alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "RANK" not in os.environ:
        return Ranks(0, 1, HashStore())
    store, rank, size = next(rendezvous("env://"))
    # One process may run several times, and the store keeps what was said in the last run: count own runs in it.
    run = store.add(f"runs of {rank}", 1)
    return Ranks(rank, size, PrefixStore(f"run {run}", store))


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
                "expected a folder that no run is writing to."
            ) from error
        yield file


@contextmanager
def owning(out: Path, ranks: Ranks, plan: str) -> Iterator[IO[bytes]]:
    """Give this rank's file of results, once rank 0 has the folder for this run and has cut off incomplete lines.

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
                ranks.share("folder", {"unwritable" if isinstance(error, UnwritableError) else "error": str(error)})
                raise
        _compare(out, ranks.rank, ranks.share("folder", said), plan)
        yield stack.enter_context(holding(out / f"rows-{ranks.rank}.jsonl"))


def _take(out: Path, stack: ExitStack) -> str:
    """Claim the folder; return the token by which the other ranks recognise it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = stack.enter_context(holding(out / "lock"))
        # A rank of a killed run may still be writing, though its rank 0 has ended and released the lock.
        for path in result_files(out):
            with holding(path) as file:
                cut_last_line(file)
    except OSError as error:
        reason, shown = error.strerror or type(error).__name__, str(out)
        raise UnwritableError(
            f"out={shown!r} cannot be used ({reason}); expected a new folder, or that of a finished run."
        ) from error
    token = secrets.token_hex(8)
    lock.truncate(0)
    lock.write(token.encode())
    os.fsync(lock.fileno())
    return token


def _compare(out: Path, rank: int, said: Mapping[str, str], plan: str) -> None:
    if "unwritable" in said or "error" in said:
        raise UnwritableError(said["unwritable"]) if "unwritable" in said else ValueError(said["error"])
    lock = out / "lock"
    if not lock.is_file() or lock.read_text("utf-8") != said["token"]:
        raise RankError(f"out={str(out)!r} on rank {rank} is not rank 0's folder; expected one that all ranks share.")
    if plan != said["plan"]:
        raise RankError(
            f"rank={rank} does not have the same plan as rank 0; "
            "expected the same versions, devices, data and arguments on every rank."
        )
