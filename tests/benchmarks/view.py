"""Views: a read, the first state of 100,000 values with its memory, and the start of a program."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datasync.consumer import View, freeze, open_view
from datasync.syncbase import ChangeBytes, Registry
from tests.benchmarks.harness import Bench, Figures, Row, Sides
from tests.support.running import environment

KEYS = 100_000
READS = 200_000


def per_read(read: Callable[[str], Any]) -> float:
    """Microseconds of one read, the loop included."""
    keys = ["flag/7"] * READS
    began = time.perf_counter()
    for key in keys:
        read(key)
    return 1e6 * (time.perf_counter() - began) / READS


@contextmanager
def reads(scale: float) -> Iterator[Sides]:
    with tempfile.TemporaryDirectory() as folder, Registry("bench") as registry:
        registry.submit_changes({"flag/7": ChangeBytes("flag/7", b'{"on":true}')})
        url = f"sqlite://{folder}/bench.db"
        with View(registry, "view") as view, open_view(url, defaults={"flag/7": {"on": True}}) as opened:
            view.wait_synced(30)
            plain = {"flag/7": view["flag/7"]}

            def ours() -> Figures:
                return {"view": per_read(view.__getitem__), "open_view": per_read(opened.__getitem__)}

            def baseline() -> Figures:
                floor = per_read(plain.__getitem__)
                return {"view": floor, "open_view": floor}

            yield Sides(ours, baseline)


@contextmanager
def first_state(scale: float) -> Iterator[Sides]:
    count = max(100, int(KEYS * scale))
    data = {
        f"flag/{number}": json.dumps({"on": True, "rate": number, "names": ["a", "b"]}).encode()
        for number in range(count)
    }
    with Registry("bench") as registry:
        registry.submit_changes({key: ChangeBytes(key, value) for key, value in data.items()})

        def measured(make: Callable[[], Any]) -> Figures:
            gc.collect()
            began = time.perf_counter()
            made = make()
            seconds = time.perf_counter() - began
            close(made)
            del made
            gc.collect()
            tracemalloc.start()  # on its own, because it slows everything down
            made = make()
            gc.collect()
            memory = tracemalloc.get_traced_memory()[0] / 2**20
            tracemalloc.stop()
            close(made)
            return {"ready": 1e3 * seconds, "memory": memory}

        def close(made: Any) -> None:
            if isinstance(made, View):
                made.close()

        def view() -> View[Any]:
            view: View[Any] = View(registry, "view")
            view.wait_synced(60)
            return view

        yield Sides(
            lambda: measured(view),
            lambda: measured(lambda: {key: freeze(json.loads(value)) for key, value in data.items()}),
        )


_HEAD = """
import sys, time
import google.protobuf.message
def memory():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) / 256
began, before = time.perf_counter(), memory()
"""
_TAIL = """
print(1e3 * (time.perf_counter() - began), memory() - before)
"""
_OURS = "import datasync\nfrom datasync import open_view\n"
_CALLED = _OURS + "flags = open_view('sqlite:' + sys.argv[1] + '/bench.db', 'flags/')\n"
_BASELINE = "import datasync\n"


@contextmanager
def imports(scale: float) -> Iterator[Sides]:
    with tempfile.TemporaryDirectory() as folder:
        # The warm-up compiles the modules, as pip does, even where Python must not write bytecode.
        compiled = environment({"PYTHONPYCACHEPREFIX": str(Path(folder) / "bytecode"), "PYTHONDONTWRITEBYTECODE": ""})

        def side(program: str) -> tuple[float, float]:
            command = [sys.executable, "-c", _HEAD + program + _TAIL, folder]
            done = subprocess.run(command, env=compiled, stdout=subprocess.PIPE, text=True, check=True)
            milliseconds, mebibytes = map(float, done.stdout.split())
            return milliseconds, mebibytes

        def figures(imported: str, called: str) -> Figures:
            names = ("import-ms", "import-MiB", "call-ms", "call-MiB")
            return dict(zip(names, (*side(imported), *side(called)), strict=True))

        yield Sides(lambda: figures(_OURS, _CALLED), lambda: figures(_BASELINE, _BASELINE))


BENCHES = [
    Bench(
        "view-read",
        "the same read of a dict",
        [Row("view", "µs", 0.0, extra=0.3), Row("open_view", "µs", 0.0, extra=0.3)],
        reads,
    ),
    Bench(
        "view-start",
        "json.loads of the same 100,000 values into a dict of frozen objects",
        [Row("ready", "ms", 0.0, extra=1500), Row("memory", "MiB", 1.3)],
        first_state,
        repeats=3,
    ),
    Bench(
        "view-import",
        "import datasync alone; protobuf is loaded before on both sides",
        [
            Row("import-ms", "ms", 0.0, extra=60),
            Row("import-MiB", "MiB", 0.0, extra=6),
            Row("call-ms", "ms"),
            Row("call-MiB", "MiB"),
        ],
        imports,
        repeats=7,
    ),
]
