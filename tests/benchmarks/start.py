"""Start time: imports, opening a SQLite file, and reading it up to the first RESYNC."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from datasync.keyval.sqlite.store import SQLiteStore
from tests.benchmarks.harness import Bench, Figures, Row, Sides
from tests.support.running import environment

KEYS = 100

# Both import protobuf first, as every user of the library does, and print milliseconds.
_HEAD = """
import sys, time
import google.protobuf.message
began = time.perf_counter()
"""
_OURS = """
from queue import Queue
from datasync.keyval import connect
from datasync.kvdbsync import Plugin
events = Queue()
with Plugin(kv=connect("sqlite:///" + sys.argv[1]), prefix="bench/") as plugin:
    plugin.watch("agent", events, events, "")
    plugin.after_init()
    event = events.get(timeout=30)
    keys = [pair.get_key() for pairs in event.get_values().values() for pair in pairs]
    print(1e3 * (time.perf_counter() - began))
    event.done()
"""
_BASELINE = """
import sqlite3
connection = sqlite3.connect(sys.argv[1])
keys = [key for key, _ in connection.execute("SELECT key, value FROM kv")]
print(1e3 * (time.perf_counter() - began))
"""


@contextmanager
def first_resync(scale: float) -> Iterator[Sides]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bench.db"
        with SQLiteStore(path) as store:
            broker = store.new_broker("bench/")
            for number in range(KEYS):
                broker.put(f"key/{number}", b'{"mtu":1500}')

        # The warm-up compiles the modules, as pip does, even where Python must not write bytecode.
        compiled = environment({"PYTHONPYCACHEPREFIX": str(Path(folder) / "bytecode"), "PYTHONDONTWRITEBYTECODE": ""})

        def side(program: str) -> Figures:
            command = [sys.executable, "-c", _HEAD + program, str(path)]
            done = subprocess.run(command, env=compiled, stdout=subprocess.PIPE, text=True, check=True)
            return {"start-to-resync": float(done.stdout)}

        yield Sides(lambda: side(_OURS), lambda: side(_BASELINE))


BENCHES = [
    Bench(
        "start",
        "import sqlite3, open the file, select; protobuf is loaded before on both sides",
        [Row("start-to-resync", "ms", 1.0, extra=60)],
        first_resync,
        repeats=15,
    ),
]
