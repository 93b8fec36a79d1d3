"""Ten thousand client-lifetime keys, whose owner is suspended, killed, or kept from renewing its lease (C17, C23)."""

from __future__ import annotations

import os
import random
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from typing import Any, Protocol

from datasync.runtime import boot_clock
from tests.faults.history import Op1, Truth, brief
from tests.faults.sources.scripted_store import Faults
from tests.faults.sources.source import Misfortune, Ops
from tests.support.child_process import Answer, Peer
from tests.support.timing import slowdown

#: Keys of an owner, all watchers together, and how many of them another one takes while it is suspended.
NUMBERS, CHANGES, TAKEN = (100, 10_000), 30_000, 10
#: Owners in one cell: each takes seconds, in which nobody else writes.
OWNERS = 2
#: Under the watched prefix.
OWNED = "z/owned/"
#: Questions after which what must happen counts as not happening, 10 ms apart on an idle machine.
LOOKS = 2000


class File(Protocol):
    """What the owner's misfortunes need of the source: its file, its record, and its writers."""

    prefix: str
    chance: random.Random
    faults: Faults
    truth: Truth
    written: int
    watchers: int

    @property
    def location(self) -> str: ...
    def look(self) -> Answer: ...
    def compact(self) -> None: ...
    def commit(self, ops: Ops) -> None: ...


class Lifetimes:
    """The owner, in a process of its own. Its commits, and those that end its keys, are read from the file's log.

    Each misfortune is called with the lock of the source held, so that nobody else commits under the prefix.
    """

    def __init__(self, file: File) -> None:
        self._file = file
        self._owner = Peer("tests.faults.sources.sqlite_owner", file.location)
        self._turn = 0

    def misfortunes(self) -> dict[str, Misfortune]:
        happens: dict[str, Misfortune] = {
            "owner-suspended": lambda: self._suspend(self._nothing),
            "owner-suspended-and-taken-over": lambda: self._suspend(self._take),
            "owner-suspended-and-trimmed": lambda: self._suspend(self._take_and_compact),
            "owner-killed": self._kill,
            "owner-locked-out": self._lock_out,
        }
        return {name: partial(self._with_owner, body) for name, body in happens.items()}

    def heal(self) -> None:
        self._owner.thaw()

    def close(self) -> None:
        self._owner.stop()

    def _with_owner(self, happens: Misfortune) -> None:
        if self._turn == OWNERS:
            return
        self._turn += 1
        self._owner.start()
        try:
            happens()
            # What another client took is deleted, so that the state stays small. A new value tells the watchers that
            # are behind from those that know that all owned keys are gone: in between they were gone as well.
            left = [key for key in self._file.truth.state if key.startswith(OWNED)]
            self._file.commit([*((key, None) for key in left), ("z/owners", b"%d" % self._turn)])
        finally:
            self._owner.stop()  # its pipes are not part of the footprint

    # What goes wrong.

    def _suspend(self, meanwhile: Callable[[list[str]], Sequence[str]]) -> None:
        """For longer than its lease; others may take keys meanwhile, which it must leave alone."""
        keys, lease = self._begin()
        with self._locked():
            self._owner.freeze()
            os.waitid(os.P_PID, self._owner.pid, os.WSTOPPED)
        self._until(lambda: not self._leases(), "the lease of a suspended owner ends")
        self._record()
        assert not self._bound(lease), "keys without a lease"
        taken = meanwhile(keys)
        told = bool(self._query("SELECT 1 FROM log JOIN history USING (revision) WHERE expiry = ? LIMIT 1", lease))
        self._owner.thaw()
        self._until(lambda: self._owner.ask("settled")["settled"], "the owner holds its lease again")
        self._record()
        back = self._bound(lease)
        assert back == ({*keys} - {*taken} if told else set()), f"{len(back)} of {len(keys)} keys were put again"
        self._finish()

    def _nothing(self, keys: list[str]) -> Sequence[str]:
        return ()

    def _take(self, keys: list[str]) -> Sequence[str]:
        """Some are written by another client, which deletes some of them again."""
        taken = self._file.chance.sample(keys, TAKEN)
        self._file.commit([(key, b"t%d" % self._turn) for key in taken])
        self._file.commit([(key, None) for key in taken[: TAKEN // 2]])
        return taken

    def _take_and_compact(self, keys: list[str]) -> Sequence[str]:
        taken = self._take(keys)
        self._file.compact()
        return taken

    def _kill(self) -> None:
        _, lease = self._begin()
        self._owner.kill()
        self._until(lambda: not self._leases(), "the lease of a killed owner ends")
        self._record()
        assert not self._bound(lease), "keys without a lease"

    def _lock_out(self) -> None:
        """Another program stays in a transaction for longer than the lease of the owner, which lives."""
        keys, lease = self._begin()
        with self._locked():
            self._until(lambda: self._overdue(lease), "nobody renews a lease while the file is locked")
        self._until(lambda: not self._overdue(lease), "the owner renews its lease")
        self._record()
        # A machine that is too busy for half a second is a suspended one.
        assert self._bound(lease) == {*keys} or slowdown() > 2, "the keys of an owner that was locked out have ended"
        self._until(lambda: self._owner.ask("settled")["settled"], "the owner holds its lease again")
        self._record()
        self._finish()

    # The owner and the file.

    def _begin(self) -> tuple[list[str], int]:
        """Let an owner put its keys; return them and its lease."""
        number = min(self._file.chance.choice(NUMBERS), CHANGES // max(1, self._file.watchers))
        prefix = self._file.prefix + OWNED
        lease = self._owner.ask("put", prefix=prefix, number=number, value=f"o{self._turn}")["lease"]
        self._file.written += 100 * number
        self._record()
        return [f"{OWNED}{n:05}" for n in range(number)], lease

    def _finish(self) -> None:
        """Close the owner's store: its keys go."""
        self._owner.ask("close")
        self._record()
        assert not self._leases(), "a lease outlived its owner"

    def _until(self, condition: Callable[[], object], sentence: str) -> None:
        for _ in range(LOOKS):
            if condition():
                return
            self._file.faults.healed.wait(0.01)
        raise AssertionError(f"{sentence}: not so")

    def _leases(self) -> int:
        self._file.look()
        return int(self._query("SELECT count(*) FROM lease")[0][0])

    def _overdue(self, lease: int) -> bool:
        return bool(self._query("SELECT 1 FROM lease WHERE id = ? AND deadline <= ?", lease, boot_clock.now()))

    def _bound(self, lease: int) -> set[str]:
        found = self._query("SELECT key FROM kv WHERE lease = ?", lease)
        return {key.decode()[len(self._file.prefix) :] for (key,) in found}

    def _record(self) -> None:
        """Record the commits that the log has beyond the record."""
        commits = self._file.truth.epochs[-1].commits
        last = commits[-1].revision if commits else 0
        rows = self._query("SELECT revision, key, value FROM log WHERE revision > ? ORDER BY revision, place", last)
        prefix = self._file.prefix
        for revision, group in groupby(rows, key=lambda row: row[0]):
            ops = [(key.decode(), None if value is None else brief(value)) for _, key, value in group]
            seen = [Op1(key[len(prefix) :], value) for key, value in ops if key.startswith(prefix)]
            if seen:
                self._file.truth.record(revision, seen)
                self._file.written += 100 * len(seen)

    def _query(self, sql: str, *arguments: object) -> list[tuple[Any, ...]]:
        with self._connected() as connection:
            return connection.execute(sql, arguments).fetchall()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Nobody is in a transaction but this program, which does nothing in it."""
        with self._connected() as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield
            connection.execute("ROLLBACK")

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        connection = sqlite3.connect(f"file:{self._file.location}?mode=rw", uri=True, timeout=20, isolation_level=None)
        try:
            yield connection
        finally:
            connection.close()
