"""What goes on in a cell besides its misfortunes: how much is written, who watches, and how they behave."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tests.faults.sources.source import KEYS, Ops, random_ops
from tests.faults.workloads.consumers import ANSWERING, MANNERS

#: Operations of one burst, and seconds between two.
BURST, BETWEEN_BURSTS = 10_000, 1.0
#: Seconds that a writer may be late and still write all that it was to write.
CATCH_UP = 0.2


@dataclass(frozen=True)
class Workload:
    """One of them; the defaults are those of three well-behaved watchers to whom all matters."""

    name: str
    about: str
    #: Operations per second; 0 for as many as the source takes, None for none.
    rate: float | None = 100.0
    #: Keys of a transaction, at least and at most; (0, 0) is as chance will have it.
    size: tuple[int, int] = (1, 1)
    #: Keys that there are.
    keys: int = 50
    #: Bytes of a value, at least. Where they are many, only sources are fit that keep their history elsewhere.
    value: int = 0
    #: Operations after which there is a pause; 0: never.
    burst: int = 0
    #: Manners of the watchers that are there from the beginning.
    watchers: tuple[str, ...] = ("fast",) * 3
    #: Seconds between two changes of somebody's prefixes, or of who watches, on the average; 0: none.
    changes: float = 0.0
    #: Places in each queue; 0: no limit, None: as chance will have it.
    room: int | None = 0
    #: The longest pause of a consumer, in seconds.
    pause: float = 0.05
    #: Seconds below which a cell of the matrix would prove nothing: memory must have reached its level before it is
    #: looked whether it grows.
    least: float = 0.0
    #: True when every watcher gets everything; else their prefixes overlap at random.
    whole: bool = True
    #: All times of the library are short and its limits small, so that each of them is met in a second.
    hurried: bool = False
    #: True when the transport is closed in the middle of a misfortune, and nothing has to converge.
    leaves: bool = False
    #: True when all goes on until a number of transactions is written, unless it is told how many seconds to go on.
    counted: bool = False

    @property
    def polite(self) -> bool:
        """True when each of its watchers accepts everything in the end, however late."""
        return all(manners in ANSWERING for manners in self.watchers)

    @property
    def abandons(self) -> bool:
        """True when some of its watchers do not answer."""
        return any(MANNERS[manners].mute for manners in self.watchers)

    @property
    def fails(self) -> bool:
        """True when some of its watchers refuse, or never answer: the others must not notice."""
        known = [MANNERS[manners] for manners in self.watchers]
        return any(manners.refuses or manners.dies or manners.silent for manners in known)

    def known_keys(self) -> Sequence[str]:
        """All that may be written."""
        return KEYS if self.keys <= len(KEYS) else many_keys(self.keys)

    def transactions(self, chance: random.Random) -> Iterator[Ops]:
        """What is written, one transaction after another."""
        keys = self.known_keys()
        while True:
            yield random_ops(chance, chance.randint(*self.size), keys, self.value)


def many_keys(number: int) -> list[str]:
    """As the few ones, in the same folders."""
    roots = ("a/", "a/b/", "b", "b/", "c/x/")
    return [f"{roots[n % 5]}{'k' * (n // 5 % 2)}{n // 10}" for n in range(number)]


def _with(manners: str, about: str, **settings: float | tuple[str, ...]) -> Workload:
    """Three of those *manners*, and two that must not suffer from them."""
    watchers = (manners,) * 3 + ("fast",) * 2
    return Workload(manners, about, **{"rate": 200.0, "watchers": watchers, **settings})  # type: ignore[arg-type]


WORKLOADS: Mapping[str, Workload] = {
    workload.name: workload
    for workload in (
        Workload("idle", "nothing is written while things go wrong", rate=None),
        Workload("steady", "100 operations a second"),
        Workload(
            "burst", "10,000 operations as fast as the source takes them", 0.0, (1, 100), 300, burst=BURST,
            watchers=("fast",) * 4,
        ),
        Workload("transactions", "transactions of 1 to 128 keys", 2000.0, (1, 128), 300, whole=False),
        Workload(
            "crowd", "50 watchers with prefixes that overlap and change", 150.0, watchers=("fast",) * 50,
            changes=0.1, whole=False,
        ),
        _with("slow", "consumers that take their time"),
        _with("stuck", "consumers that hang for a while, or until all is over", watchers=("stuck", "frozen", "fast")),
        Workload(
            # Not more: what piles up while a line is cut has to be carried over it before anybody is in step again.
            "flood", "10 MB a second while consumers hang: memory is bounded", 400.0, (10, 20), value=48 << 10,
            watchers=("frozen", "frozen", "fast"), room=1, least=15.0,
        ),
        _with("dying", "consumers whose thread ends before it answers, and which come again later"),
        _with("refusing", "consumers that refuse"),
        _with("raising", "queues that raise instead of taking an event"),
        _with("reentrant", "consumers that call the library before they answer", watchers=("reentrant", "at-once") * 2),
        _with("twice", "consumers that answer twice"),
        _with("elsewhere", "consumers that answer from other threads, later"),
        _with("small-queue", "queues of one place", watchers=("slow", "crowded", "fast"), room=1),
        Workload("leaving", "the transport is closed in the middle of a misfortune", leaves=True),
        Workload(
            "mixed", "watchers of all kinds come and go; all is short of time", size=(0, 0), watchers=(), room=None,
            pause=0.004, whole=False, hurried=True, counted=True,
        ),
    )
}  # fmt: skip


class Pace:
    """Keeps a writer at the rate of its workload; it does not catch up on what it missed while the source was away."""

    def __init__(self, workload: Workload, chance: random.Random, wait: Callable[[float], object]) -> None:
        self._workload = workload
        self._chance = chance
        self._wait = wait
        self._written = 0
        self._due = time.monotonic()

    def keep(self, operations: int, pace: float) -> None:
        """So many were written: wait until the next ones are due. *pace* is the source's own."""
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
