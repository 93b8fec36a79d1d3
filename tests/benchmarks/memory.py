"""Memory per key beyond the key and its value, measured in a new process each time.

``python -m tests.benchmarks.memory ours|baseline COUNT`` prints bytes per key.
"""

from __future__ import annotations

import gc
import os
import queue
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from datasync.events import ResyncReason
from datasync.syncbase.registry import Registry
from tests.benchmarks.harness import Bench, Figures, Row, Sides
from tests.support.running import environment

KEYS = 1_000_000
VALUE_SIZE = 200
#: Keys that are allocated before the measurement.
FILLING = 10_000


def resident() -> int:
    """Resident bytes of this process."""
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _pairs(count: int) -> Iterator[tuple[str, bytes]]:
    for number in range(count):
        yield f"/bench/config/interface/{number:08}", b"%0*d" % (VALUE_SIZE, number)


def beyond(side: str, count: int) -> float:
    """Bytes per key, without the key and the value themselves."""
    own = sum(sys.getsizeof(key) + sys.getsizeof(value) for key, value in _pairs(min(count, 1000))) / min(count, 1000)
    registry = Registry("bench", sourced=True)
    events: queue.Queue[Any] = queue.Queue()
    registry.watch("bench", events, events, "/bench/")
    filled = [*_pairs(FILLING)]  # uses up what imports have left free in the heap
    before = resident()
    kept = {key: (number, value) for number, (key, value) in enumerate(_pairs(count), 1)}
    if side == "ours":
        registry.feed_snapshot(count, kept, ResyncReason.INITIAL)
        event = events.get()
        assert sum(1 for pairs in event.get_values().values() for _ in pairs) == count
        event.done()
        del event
    grown = resident() - before
    registry.close()
    filled.clear()
    return grown / count - own


@contextmanager
def bytes_per_key(scale: float, keys: int = KEYS) -> Iterator[Sides]:
    count = max(1_000, int(keys * scale))

    def side(name: str) -> Figures:
        command = [sys.executable, "-m", "tests.benchmarks.memory", name, str(count)]
        done = subprocess.run(command, env=environment(), stdout=subprocess.PIPE, text=True, check=True)
        return {"registry-bytes-per-key": float(done.stdout)}

    yield Sides(lambda: side("ours"), lambda: side("baseline"))


BENCHES = [
    Bench(
        "memory",
        "a dict of key to (revision, bytes); both without the keys and values themselves",
        [Row("registry-bytes-per-key", "bytes", 1.3)],
        bytes_per_key,
        repeats=3,
    ),
]

if __name__ == "__main__":
    print(beyond(sys.argv[1], int(sys.argv[2])))
