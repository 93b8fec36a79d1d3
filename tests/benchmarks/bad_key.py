"""One key that is rejected for ever, and changes of another key meanwhile: from commit to acknowledgement.

The baseline is the same without the bad key. At scale 1.0 a run lasts three minutes, with a change each second.
"""

from __future__ import annotations

import queue
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from datasync.errors import Rejected
from datasync.events import ResyncEvent
from datasync.keyval.urls import connect
from datasync.kvdbsync.plugin import Plugin
from tests.benchmarks.etcd import server
from tests.benchmarks.harness import Bench, Figures, Row, Sides

#: Seconds of a run, and between two changes.
SECONDS, EVERY = 180.0, 1.0


@contextmanager
def one_bad_key(kind: str, scale: float) -> Iterator[Sides]:
    """*kind* is the scheme of the store."""
    changes, every = max(5, int(SECONDS / EVERY * scale)), min(EVERY, 10 * EVERY * max(scale, 0.001))
    notes: list[str] = []
    with ExitStack() as stack:
        if kind == "etcd":
            url = stack.enter_context(server()).url
        elif kind == "sqlite":
            url = f"sqlite://{Path(stack.enter_context(tempfile.TemporaryDirectory())) / 'bench.db'}"
        else:
            url = "memory://"

        def run(bad: bool) -> Figures:
            waits: list[float] = []
            tries: list[float] = []
            applied = threading.Event()
            stopping = threading.Event()
            events: queue.Queue[Any] = queue.Queue()

            def consume() -> None:
                while not stopping.is_set():
                    event = events.get()
                    if event is None:
                        return
                    rejected = {}
                    if not isinstance(event, ResyncEvent):
                        for change in event.get_changes():
                            if change.get_key() == "bad" and bad:
                                rejected["bad"] = ValueError("never")
                                tries.append(time.monotonic())
                            elif change.get_key() == "good":
                                waits.append(1e3 * (time.perf_counter() - float(change.raw)))
                                applied.set()
                    event.done(Rejected(rejected) if rejected else None)

            consumer = threading.Thread(target=consume)
            consumer.start()
            with connect(url) as store, Plugin(store, "bad-key/") as plugin:
                plugin.watch("agent", events, events, "")
                plugin.after_init()
                broker = store.new_broker("bad-key/")
                broker.put("bad", b"1")
                for _ in range(changes):
                    applied.clear()
                    broker.put("good", b"%.9f" % time.perf_counter())
                    applied.wait(60)
                    stopping.wait(every)
                status = plugin.status().subscriptions["agent"]
            events.put(None)
            consumer.join()
            waits.sort()
            p99 = waits[min(len(waits) - 1, int(len(waits) * 0.99))]
            if bad:
                gaps = [later - earlier for earlier, later in pairwise(tries)]
                spans = ", ".join(f"{gap:.1f}" for gap in gaps)
                notes.append(
                    f"{len(waits)} changes, p50 {statistics.median(waits):.2f} ms, p99 {p99:.2f} ms; the bad key was "
                    f"tried {len(tries)} times, after {spans or 'no'} s; RESYNCs {sum(status.resyncs.values())}"
                )
            return {f"{kind}-bad-key": p99}

        yield Sides(partial(run, True), partial(run, False), notes)


BENCHES = [
    Bench(
        f"{kind}-bad-key",
        "the same without the bad key",
        [Row(f"{kind}-bad-key", "ms", 1.2, extra=limit)],
        partial(one_bad_key, kind),
        repeats=1,
    )
    for kind, limit in (("memory", 50.0), ("sqlite", 50.0), ("etcd", 100.0))
]
