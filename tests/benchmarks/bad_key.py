"""One key that is rejected for ever, and changes of another key meanwhile: from commit to acknowledgement.

The baseline has no bad key and runs at the same time, half a period later: both see the same machine. At scale 1.0 the
run lasts three minutes, with a change each second; then the bad key is corrected, and 100,000 keys of which ten are bad
are read.
"""

from __future__ import annotations

import queue
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any

from datasync.errors import Rejected
from datasync.events import ResyncEvent
from datasync.keyval.api import Store
from datasync.keyval.urls import connect
from datasync.kvdbsync.plugin import Plugin
from datasync.runtime.timeouts import FAILURE_BACKOFF
from tests.benchmarks.etcd import server
from tests.benchmarks.harness import Bench, Figures, Row, Sides

#: Seconds of a run, and between two changes.
SECONDS, EVERY = 180.0, 1.0
#: Keys that are read at once, and how many of them are bad.
KEYS, BAD = 100_000, 10
#: Keys of a transaction: as many as etcd takes by default.
TRANSACTION = 128
#: Seconds after which a change that is not applied ends the run.
PATIENCE = 60.0
#: The value that is rejected.
WRONG = b"wrong"


class Subscriber:
    """A consumer that rejects the value ``WRONG``, of a plugin of its own. Leaving the context ends both."""

    def __init__(self, store: Store, prefix: str) -> None:
        self._inbox: queue.Queue[Any] = queue.Queue()
        self._applied: queue.Queue[tuple[str, bytes, float]] = queue.Queue()
        #: Times at which each bad key was tried.
        self.tries: dict[str, list[float]] = {}
        #: Keys that were applied, of CHANGEs and RESYNCs.
        self.count = 0
        self._plugin = Plugin(store, prefix)
        self._thread = threading.Thread(target=self._consume)

    def __enter__(self) -> Subscriber:
        self._thread.start()
        self._registration = self._plugin.watch("agent", self._inbox, self._inbox, "")
        self._plugin.after_init()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._plugin.close()
        self._inbox.put(None)
        self._thread.join()

    @property
    def resyncs(self) -> int:
        return sum(self._plugin.status().subscriptions["agent"].resyncs.values())

    def applied(self, key: str, value: bytes) -> float:
        """Wait until *key* is applied with *value*; return the time of that."""
        while True:
            one, data, at = self._applied.get(timeout=PATIENCE)
            if (one, data) == (key, value):
                return at

    def synced(self) -> None:
        """Wait until everything that the plugin knows was accepted."""
        self._registration.wait_synced(timeout=PATIENCE)

    def _consume(self) -> None:
        while (event := self._inbox.get()) is not None:
            rejected: dict[str, BaseException] = {}
            resync = isinstance(event, ResyncEvent)
            pairs = [one for ones in event.get_values().values() for one in ones] if resync else event.get_changes()
            for pair in pairs:
                key, value = pair.get_key(), pair.raw
                if value == WRONG:
                    rejected[key] = ValueError("never")
                    self.tries.setdefault(key, []).append(time.monotonic())
                    continue
                self.count += 1
                if not resync:
                    self._applied.put((key, value, time.perf_counter()))
            event.done(Rejected(rejected) if rejected else None)


def allowed(seconds: float) -> int:
    """Return how often the backoff lets a key be tried within *seconds* of the first try, at most."""
    (delay, most), at, tries = FAILURE_BACKOFF, 0.0, 1
    while at + delay <= seconds:
        at, delay, tries = at + delay, min(most, 2 * delay), tries + 1
    return tries


def change(put: Callable[[str, bytes], object], subscriber: Subscriber, key: str, value: bytes) -> float:
    """Put *value* and return the milliseconds until it was applied."""
    begun = time.perf_counter()
    put(key, value)
    return 1e3 * (subscriber.applied(key, value) - begun)


def p99(sorted_waits: Sequence[float]) -> float:
    return sorted_waits[min(len(sorted_waits) - 1, int(len(sorted_waits) * 0.99))]


def play(store: Store, changes: int, every: float, notes: list[str]) -> tuple[float, float]:
    """Change a good key beside a bad one, and one that is alone; return the p99 of both, in milliseconds."""
    beside, alone = store.new_broker("bad-key/beside/"), store.new_broker("bad-key/alone/")
    ours: list[float] = []
    theirs: list[float] = []
    pause = threading.Event()
    with Subscriber(store, "bad-key/beside/") as one, Subscriber(store, "bad-key/alone/") as other:
        beside.put("bad", WRONG)
        for number in range(changes):
            ours.append(change(beside.put, one, "good", b"%d" % number))
            pause.wait(every / 2)
            theirs.append(change(alone.put, other, "good", b"%d" % number))
            pause.wait(every / 2)
        tries = list(one.tries["bad"])
        may = allowed(time.monotonic() - tries[0])
        corrected = change(beside.put, one, "bad", b"right")
        resyncs = one.resyncs
    ours.sort()
    theirs.sort()
    gaps = ", ".join(f"{later - earlier:.1f}" for earlier, later in pairwise(tries))
    notes.append(
        f"{len(ours)} changes beside the bad key: p50 {statistics.median(ours):.2f} ms, p99 {p99(ours):.2f} ms, max "
        f"{ours[-1]:.2f} ms; without it: p50 {statistics.median(theirs):.2f} ms, p99 {p99(theirs):.2f} ms, max "
        f"{theirs[-1]:.2f} ms"
    )
    notes.append(
        f"the bad key was tried {len(tries)} times, its backoff allows {may}; between tries: {gaps or 'no'} s; "
        f"corrected, it was applied after {corrected:.2f} ms; RESYNCs {resyncs}, of which one is the first"
    )
    return p99(ours), p99(theirs)


def many(store: Store, keys: int, notes: list[str]) -> None:
    """Read *keys* keys of which ten are bad; wait until each was tried again, then correct them."""
    broker = store.new_broker("bad-key/many/")
    bad = [f"k/{number * keys // BAD:06}" for number in range(BAD)]
    fill(broker, keys, set(bad))
    with Subscriber(store, "bad-key/many/") as one:
        until = time.monotonic() + PATIENCE
        while any(len(one.tries.get(key, ())) < 2 for key in bad):
            if time.monotonic() > until:
                raise TimeoutError(f"bad keys were tried {one.tries} only")
            time.sleep(0.02)
        applied = one.count
        live = change(broker.put, one, "k/live", b"1")
        corrected = max(change(broker.put, one, key, b"right") for key in bad)
        one.synced()
        notes.append(
            f"{keys} keys of which {BAD} are bad: {applied} applied, each bad key tried twice, then another key "
            f"changed within {live:.2f} ms and the bad ones corrected within {corrected:.2f} ms each; RESYNCs "
            f"{one.resyncs}, of which one is the first"
        )


def fill(broker: Any, keys: int, bad: Collection[str]) -> None:
    for start in range(0, keys, TRANSACTION):
        txn = broker.new_txn()
        for number in range(start, min(keys, start + TRANSACTION)):
            key = f"k/{number:06}"
            txn.put(key, WRONG if key in bad else b"%d" % number)
        txn.commit()


@contextmanager
def one_bad_key(kind: str, scale: float) -> Iterator[Sides]:
    """*kind* is the scheme of the store."""
    changes, every = max(5, int(SECONDS / EVERY * scale)), min(EVERY, 10 * EVERY * max(scale, 0.001))
    notes: list[str] = []
    baseline: list[float] = []
    with ExitStack() as stack:
        if kind == "etcd":
            url = stack.enter_context(server()).url
        elif kind == "sqlite":
            url = f"sqlite://{Path(stack.enter_context(tempfile.TemporaryDirectory())) / 'bench.db'}"
        else:
            url = "memory://"
        store = stack.enter_context(connect(url))

        def ours() -> Figures:
            with_it, without = play(store, changes, every, notes)
            baseline.append(without)
            many(store, max(BAD, int(KEYS * scale)), notes)
            return {f"{kind}-bad-key": with_it}

        yield Sides(ours, lambda: {f"{kind}-bad-key": baseline.pop()}, notes)


BENCHES = [
    Bench(
        f"{kind}-bad-key",
        "the same without the bad key, at the same time",
        [Row(f"{kind}-bad-key", "ms", 0.0, extra=limit)],
        partial(one_bad_key, kind),
        repeats=1,
        warm_up=0,
    )
    for kind, limit in (("memory", 50.0), ("sqlite", 50.0), ("etcd", 100.0))
]
