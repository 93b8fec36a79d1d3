"""Files: listing thousands of them, seeing a change among them, doing nothing, and writing one."""

from __future__ import annotations

import fcntl
import json
import os
import queue
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from datasync.keyval import PutOp
from datasync.keyval.filedb import FileStore, WritableFileStore
from datasync.kvdbsync.plugin import Plugin
from tests.benchmarks.harness import Bench, Figures, Row, Sides
from tests.benchmarks.idle import _measured

FILES, KEYS, FOLDERS = 2000, 5, 40
#: Changes that are timed, and keys of the file that is written.
CHANGES, WRITTEN = 15, 500
COMMITS = 50
#: Per cent of a core that a folder of 2,000 files may take while nothing happens.
ALLOWED = 1.0
VALUE = {"name": "GigabitEthernet0/0/0", "enabled": True, "mtu": 1500}


@contextmanager
def folder(scale: float) -> Iterator[Path]:
    """A folder of files with five keys each."""
    with tempfile.TemporaryDirectory() as home:
        for number in range(int(FILES * scale)):
            below = Path(home) / f"{number % FOLDERS}"
            below.mkdir(exist_ok=True)
            write(below / f"{number}.json", {f"/bench/{number}/{key}": VALUE for key in range(KEYS)})
        yield Path(home)


def write(path: Path, values: dict[str, object]) -> None:
    new = path.with_suffix(".tmp")
    new.write_text(json.dumps({"data": [{"key": key, "value": value} for key, value in values.items()]}))
    new.replace(path)


def read_all(home: Path) -> dict[str, object]:
    """The pairs of all files, with nothing but the standard library."""
    found = {}
    for place, _, names in os.walk(home):
        for name in names:
            with open(os.path.join(place, name), "rb") as file:
                for item in json.load(file)["data"]:
                    found[item["key"]] = item["value"]
    return found


def signatures(home: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of each file, as a bare polling loop compares them."""
    found = {}
    for place, _, names in os.walk(home):
        for name in names:
            status = os.stat(os.path.join(place, name))
            found[os.path.join(place, name)] = (status.st_ino, status.st_mtime_ns)
    return found


@contextmanager
def listing(scale: float) -> Iterator[Sides]:
    with folder(scale) as home:

        def ours() -> Figures:
            started = time.perf_counter()
            with FileStore(home) as store:
                assert len(list(store.scan(""))) == KEYS * int(FILES * scale)
            return {"file-list-2000": (time.perf_counter() - started) * 1000}

        def baseline() -> Figures:
            started = time.perf_counter()
            assert len(read_all(home)) == KEYS * int(FILES * scale)
            return {"file-list-2000": (time.perf_counter() - started) * 1000}

        yield Sides(ours, baseline)


@contextmanager
def seen(scale: float) -> Iterator[Sides]:
    with folder(scale) as home, FileStore(home) as store, Plugin(kv=store) as plugin:
        events: queue.Queue = queue.Queue()  # type: ignore[type-arg]
        plugin.watch("bench", events, events)
        events.get().done()
        changed, numbers = home / "3" / "3.json", iter(range(1 << 40))

        def ours() -> Figures:
            taken = []
            for _ in range(CHANGES):
                time.sleep(0.1)  # nobody changes a file all the time
                started = time.perf_counter()
                write(changed, {"/bench/3/0": next(numbers)})
                event = events.get()
                taken.append(time.perf_counter() - started)
                event.done()
            return {"file-seen-2000": median(taken) * 1000}

        def baseline() -> Figures:
            taken = []
            for _ in range(CHANGES):
                before = signatures(home)
                started = time.perf_counter()
                write(changed, {"/bench/3/0": next(numbers)})
                now = signatures(home)
                for path in [path for path in now if now[path] != before.get(path)]:
                    json.loads(Path(path).read_bytes())
                taken.append(time.perf_counter() - started)
                events.get().done()
            return {"file-seen-2000": median(taken) * 1000}

        yield Sides(ours, baseline, ["baseline: a bare loop that looks at all files once, at once"])


@contextmanager
def idle(scale: float) -> Iterator[Sides]:
    with folder(1.0) as home:
        notes: list[str] = []

        def ours() -> Figures:
            percent, threads = _measured("store", f"file://{home}", scale)
            notes.append(f"threads: {threads}")
            return {"file-idle-2000": percent}

        yield Sides(ours, lambda: {"file-idle-2000": ALLOWED}, notes)


@contextmanager
def commit(scale: float) -> Iterator[Sides]:
    commits = max(2, int(COMMITS * scale))
    with tempfile.TemporaryDirectory() as home, WritableFileStore(home) as store:
        pairs = {f"/bench/{number}": VALUE for number in range(WRITTEN)}
        store.commit([PutOp(key, json.dumps(value).encode()) for key, value in pairs.items()])
        path, lock = Path(home) / "bare" / "bare.json", Path(home) / "bare" / ".lock"
        path.parent.mkdir()
        write(path, dict(pairs))

        def ours() -> Figures:
            started = time.perf_counter()
            for number in range(commits):
                store.commit([PutOp("/bench/0", b"%d" % number)])
            return {"file-commit-500": commits / (time.perf_counter() - started)}

        def baseline() -> Figures:
            started = time.perf_counter()
            for number in range(commits):
                with open(lock, "w") as held:
                    fcntl.flock(held, fcntl.LOCK_EX)
                    items = {item["key"]: item["value"] for item in json.loads(path.read_bytes())["data"]}
                    items["/bench/0"] = number
                    new = path.with_suffix(".tmp")
                    with open(new, "w") as file:
                        json.dump({"data": [{"key": key, "value": value} for key, value in items.items()]}, file)
                        file.flush()
                        os.fsync(file.fileno())
                    new.replace(path)
                    above = os.open(path.parent, os.O_RDONLY)
                    os.fsync(above)
                    os.close(above)
            return {"file-commit-500": commits / (time.perf_counter() - started)}

        yield Sides(ours, baseline)


BENCHES = [
    Bench("file-list", "os.walk and json.load of all files", [Row("file-list-2000", "ms", 5.0)], listing, repeats=5),
    Bench(
        "file-seen",
        "one bare look at all files, started by the change",
        [Row("file-seen-2000", "ms", 1.0, extra=100.0)],
        seen,
        repeats=5,
    ),
    Bench("file-idle", "1 % of a core", [Row("file-idle-2000", "%", 1.0)], idle, repeats=3),
    Bench(
        "file-commit",
        "lock, read, write, fsync and rename of the same file",
        [Row("file-commit-500", "commits/s", 0.5, higher_is_better=True)],
        commit,
        repeats=5,
    ),
]
