"""The processes that share a run, as ``torchrun`` starts them: what they tell each other goes through one store."""

import json
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from torch.distributed import HashStore, PrefixStore, Store  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

Item = TypeVar("Item")

POLL = 0.2  # seconds between two looks at how far the others are


class Ranks(NamedTuple):
    """This process's ``rank`` of ``size`` processes, and their store."""

    rank: int
    size: int
    store: Store

    def share(self, name: str, value: Any = None) -> Any:
        """What rank 0 gave by this name, as JSON, on every rank."""
        if self.rank == 0:
            self.store.set(name, json.dumps(value))
        return json.loads(self.store.get(name))

    def add(self, name: str, amount: int) -> int:
        """Add to a number of all ranks; what it is then."""
        return int(self.store.add(name, amount))

    def wait(self, name: str) -> Iterator[None]:
        """Wait until all ranks have added to a number; yields again and again meanwhile.

        Where the store is gone, with the process that kept it, ``torch.distributed.DistError`` is raised.
        """
        while self.add(name, 0) < self.size:
            yield
            time.sleep(POLL)

    def divide(self, items: Sequence[Item]) -> Iterator[Item]:
        """Yield items that no other rank gets, each when it is asked for: who is fast takes more."""
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
