"""Workloads: the rate and size of writes, and the watchers with the behaviour of their consumers."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tests.faults.sources.source import KEYS, Ops, random_ops
from tests.faults.workloads.consumers import ANSWERING, MANNERS, OBLIGING
from tests.faults.workloads.loops import ACCEPTING

#: Operations of one burst, and seconds between two bursts.
BURST, BETWEEN_BURSTS = 10_000, 1.0
#: Seconds of delay that a writer makes up for.
CATCH_UP = 0.2


@dataclass(frozen=True)
class Workload:
    """One workload. By default it has three well-behaved watchers of all keys."""

    name: str
    about: str
    #: Operations per second; 0: as fast as the source accepts them; None: no writes.
    rate: float | None = 100.0
    #: Minimum and maximum number of keys in a transaction; (0, 0): random.
    size: tuple[int, int] = (1, 1)
    #: Number of different keys.
    keys: int = 50
    #: Minimum bytes of a value. Large values need a source that keeps its history in another process.
    value: int = 0
    #: Operations after which the writer pauses; 0: never.
    burst: int = 0
    #: Manners of the watchers that exist from the beginning.
    watchers: tuple[str, ...] = ("fast",) * 3
    #: Average seconds between two changes of prefixes or of the set of watchers; 0: none.
    changes: float = 0.0
    #: Size limit of each queue; 0: none; None: random.
    room: int | None = 0
    #: Longest pause of a consumer, in seconds.
    pause: float = 0.05
    #: Minimum duration of a cell in a matrix, in seconds: memory must be level before its growth is measured.
    least: float = 0.0
    #: True when every watcher watches everything; otherwise their prefixes overlap at random.
    whole: bool = True
    #: True when all times and limits of the library are small, so that each is reached within a second.
    hurried: bool = False
    #: True when the transport is closed during a misfortune, and nothing has to converge.
    leaves: bool = False
    #: True when the cell ends after a number of transactions, unless it was given a duration.
    counted: bool = False

    @property
    def polite(self) -> bool:
        """True when all watchers accept every event, however late."""
        return all(manners in (*ANSWERING, *ACCEPTING) for manners in self.watchers)

    @property
    def obliging(self) -> bool:
        """True when all watchers accept every change that a caller sends."""
        return all(manners in (*OBLIGING, *ACCEPTING) for manners in self.watchers)

    @property
    def abandons(self) -> bool:
        """True when some watchers do not acknowledge events."""
        return any(manners in MANNERS and MANNERS[manners].mute for manners in self.watchers)

    @property
    def fails(self) -> bool:
        """True when some watchers reject keys or events or never acknowledge, which must not affect the others."""
        return any(
            manners not in (*ANSWERING, *ACCEPTING) and (manners not in MANNERS or MANNERS[manners].fails)
            for manners in self.watchers
        )

    def known_keys(self) -> Sequence[str]:
        """All keys that may be written."""
        return KEYS if self.keys <= len(KEYS) else many_keys(self.keys)

    def transactions(self, chance: random.Random) -> Iterator[Ops]:
        """Generate the transactions to write."""
        keys = self.known_keys()
        while True:
            yield random_ops(chance, chance.randint(*self.size), keys, self.value)


def many_keys(number: int) -> list[str]:
    """*number* keys, in the same folders as the default ones."""
    roots = ("a/", "a/b/", "b", "b/", "c/x/")
    return [f"{roots[n % 5]}{'k' * (n // 5 % 2)}{n // 10}" for n in range(number)]


def _with(manners: str, about: str, **settings: float | tuple[str, ...] | tuple[int, int]) -> Workload:
    """Three watchers with *manners*, and two fast ones that must not be affected."""
    watchers = (manners,) * 3 + ("fast",) * 2
    return Workload(manners, about, **{"rate": 200.0, "watchers": watchers, **settings})  # type: ignore[arg-type]


WORKLOADS: Mapping[str, Workload] = {
    workload.name: workload
    for workload in (
        Workload("idle", "no writes while faults happen", rate=None),
        Workload("steady", "100 operations a second"),
        Workload(
            "burst", "10,000 operations as fast as the source accepts them", 0.0, (1, 100), 300, burst=BURST,
            watchers=("fast",) * 4,
        ),
        Workload("transactions", "transactions of 1 to 128 keys", 2000.0, (1, 128), 300, whole=False),
        Workload(
            "crowd", "50 watchers with prefixes that overlap and change", 150.0, watchers=("fast",) * 50,
            changes=0.1, whole=False,
        ),
        _with("slow", "slow consumers"),
        _with("stuck", "consumers that hang for a while, or until the end", watchers=("stuck", "frozen", "fast")),
        Workload(
            # Not more: the backlog of an outage must be transferred before the watchers are in sync again.
            "flood", "10 MB a second while consumers hang: memory is bounded", 400.0, (10, 20), value=48 << 10,
            watchers=("frozen", "frozen", "fast"), room=1, least=15.0,
        ),
        _with("dying", "consumers whose thread ends before it acknowledges, and which return later"),
        _with(
            "refusing", "consumers that reject events, some of their keys, or some keys always", size=(1, 5),
            watchers=("refusing", "picky", "stubborn", "fast", "fast"),
        ),
        _with(
            "obliging", "consumers that reject RESYNCs, and keys of them", changes=0.2, whole=False,
            watchers=("obliging",) * 3 + ("fast", "fast"),
        ),
        _with("raising", "queues that raise instead of accepting an event"),
        _with("reentrant", "consumers that call the library before they answer", watchers=("reentrant", "at-once") * 2),
        _with("twice", "consumers that acknowledge twice"),
        _with("elsewhere", "consumers that acknowledge later, from other threads"),
        _with("small-queue", "queues of size one", watchers=("slow", "crowded", "fast"), room=1),
        Workload(
            "loops", "reconcilers and views", 200.0, (1, 5), watchers=("reconciler", "view", "reconciler", "fast"),
        ),
        Workload(
            "failing-loops", "reconcilers whose calls fail", 200.0, (1, 5),
            watchers=("failing-reconciler", "failing-reconciler", "view", "fast"),
        ),
        Workload("leaving", "the transport is closed during a misfortune", leaves=True),
        Workload(
            "mixed", "watchers of all kinds come and go; all limits are small", size=(0, 0), watchers=(), room=None,
            pause=0.004, whole=False, hurried=True, counted=True,
        ),
    )
}  # fmt: skip


class Pace:
    """Keeps a writer at the rate of its workload; it does not make up for the time of an outage."""

    def __init__(self, workload: Workload, chance: random.Random, wait: Callable[[float], object]) -> None:
        self._workload = workload
        self._chance = chance
        self._wait = wait
        self._written = 0
        self._due = time.monotonic()

    def keep(self, operations: int, pace: float) -> None:
        """Wait after *operations* writes until the next are due; *pace* is the pace of the source."""
        workload = self._workload
        if workload.counted:
            if self._chance.random() < 0.5:
                self._wait(self._chance.uniform(0, pace / 2))
        elif workload.rate:
            now = time.monotonic()
            self._due = max(self._due, now - CATCH_UP) + operations / workload.rate
            self._wait(max(0.0, self._due - now))
        else:
            self._written += operations
            if self._written >= workload.burst:
                self._written = 0
                self._wait(BETWEEN_BURSTS)
