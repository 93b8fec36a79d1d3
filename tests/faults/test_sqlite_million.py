"""Many keys in one file: listed, changed 2,000 at a time, restored from a copy under a watcher (I2, I5, I7).

``python -m pytest -m bench -s tests/faults/test_sqlite_million.py`` takes a million, and prints seconds and memory.
"""

from __future__ import annotations

import os
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path
from queue import Queue
from typing import Any, TypeVar

import pytest

from datasync.events import ChangeEvent, Op, ResyncEvent, ResyncReason
from datasync.keyval.api import Store
from datasync.keyval.sqlite.store import SQLiteStore
from datasync.keyval.types import DeleteOp, PutOp
from datasync.kvdbsync.plugin import Plugin
from tests.faults.recorder import RawSerializer

#: Keys that are written in one transaction while the file is filled, and in the one that is watched.
FILL, AT_ONCE = 10_000, 2_000
#: Keys that the copy does not have.
GONE = 1_000
#: Seconds that each step of a million may take.
PATIENCE = 300.0

T = TypeVar("T")


def rss() -> float:
    """MB of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def timed(what: str, step: Callable[[], T]) -> T:
    began = time.monotonic()
    result = step()
    sys.stdout.write(f"{what:>60}: {time.monotonic() - began:7.2f} s, {rss():7.0f} MB\n")
    return result


def fill(store: Store, first: int, last: int) -> None:
    for start in range(first, last, FILL):
        numbers = range(start, min(start + FILL, last))
        store.commit([PutOp(f"p/{number:07}", b"%07d" % number * 14) for number in numbers])


def copy(source: Path, target: Path) -> None:
    one, other = sqlite3.connect(source), sqlite3.connect(target)
    one.backup(other)
    one.close()
    other.close()


def counted(event: ResyncEvent) -> int:
    """The keys of a full state, read to the end, each once."""
    return timed("and it is read", lambda: len({kv.get_key() for kvs in event.get_values().values() for kv in kvs}))


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(20_000, id="20,000"),
        pytest.param(1_000_000, id="1,000,000", marks=[pytest.mark.slow, pytest.mark.bench, pytest.mark.timeout(1200)]),
    ],
)
def test_i2_i5_i7_many_keys_are_listed_changed_at_once_and_restored_from_a_copy(number: int, tmp_path: Path) -> None:
    path, saved = tmp_path / "store.db", tmp_path / "copy.db"
    queue: Queue[Any] = Queue()
    with SQLiteStore(path, synchronous="off") as writer, SQLiteStore(path) as reader:
        # given a file with so many keys, and a copy that was made before the last of them were
        timed(f"{number:,} keys are written", lambda: fill(writer, 0, number - GONE))
        copy(path, saved)
        fill(writer, number - GONE, number)
        with Plugin(reader, "p/", serializer=RawSerializer(), allow_delayed_start=True) as plugin:
            plugin.watch("w", queue, queue, "")
            plugin.after_init()
            # then all of them are in the first RESYNC
            event = timed("listed", lambda: queue.get(timeout=PATIENCE))
            assert isinstance(event, ResyncEvent)
            assert counted(event) == number
            event.done()
            # and when many are changed in one transaction / then that is one CHANGE
            ops = [DeleteOp(f"p/{n:07}") if n % 2 else PutOp(f"p/{n:07}", b"new") for n in range(AT_ONCE)]
            writer.commit(ops)
            change = timed(f"{AT_ONCE:,} changes at once", lambda: queue.get(timeout=PATIENCE))
            assert isinstance(change, ChangeEvent)
            kinds = [one.get_change_type() for one in change.get_changes()]
            assert (kinds.count(Op.PUT), kinds.count(Op.DELETE)) == (AT_ONCE / 2, AT_ONCE / 2)
            change.done()
            # and when the copy is brought back
            del event, change
            timed("the copy is brought back", lambda: copy(saved, path))
            event = timed("listed again", lambda: queue.get(timeout=PATIENCE))
            # then that is what all are told, with everything that is no longer there
            assert isinstance(event, ResyncEvent)
            assert event.reason is ResyncReason.REWOUND
            assert counted(event) == number - GONE
            removed = {gone.get_key() for gone in event.get_removed()}
            assert removed == {f"{n:07}" for n in range(number - GONE, number)}
            event.done()
