"""One SQLite file that processes write to and this one watches: killed, frozen, full, trimmed, restored, moved away.

The writer is a process of its own. Each of its transactions also sets a marker, which tells afterwards whether one
that got no answer was applied.
"""

from __future__ import annotations

import base64
import ctypes
import os
import random
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from datasync.keyval.sqlite.store import SQLiteStore
from tests.faults.history import Op1, TruthCommit, brief
from tests.faults.sources.scripted_store import FaultyStore
from tests.faults.sources.source import Misfortune, Ops, Source, random_ops
from tests.faults.sources.sqlite_lifetimes import Lifetimes
from tests.support.child_process import Answer, Peer, PeerGone

#: Neither is under the watched prefix.
MARKER = "marker"
FOREIGN = "foreign"
#: Keys of a transaction that is larger than a page of the log.
MANY = 2000
#: Bytes of a value that is larger than anything a page cache or a pipe takes at once.
MUCH = 3 * 1024 * 1024
#: Somebody who owns nothing: "nobody".
NOBODY = 65534


class SQLiteSource(Source):
    """Two writers and a reader, each with a process of its own; the reader's is the harness's."""

    prefix = "/service/"
    pace = 0.02

    def __init__(self, chance: random.Random) -> None:
        super().__init__(chance)
        self._home = tempfile.TemporaryDirectory(prefix="datasync-faults-")
        self._folder = Path(self._home.name) / "data"
        self._folder.mkdir(mode=0o700)
        self.path = self._folder / "history.db"
        self._copy = Path(self._home.name) / "copy.db"
        self._sent = 0
        kept = chance.choice(("67108864", "20000"))  # bytes: with the latter the log is trimmed all the time
        self._peers = [
            Peer("tests.faults.sources.sqlite_writer", str(self.path), "--history-bytes", kept) for _ in range(2)
        ]
        self._writer, self._other = self._peers
        for peer in self._peers:
            peer.start()
        self._lifetimes = Lifetimes(self)
        reader = SQLiteStore(self.path, synchronous="off")
        self._rights = Rights(reader, self._folder)
        self.store = FaultyStore(reader, self.faults)

    def write(self, ops: Ops) -> None:
        with self.lock:
            self._commit(self._writer, ops)

    def misfortunes(self) -> dict[str, Misfortune]:
        return {
            "cut": self.away,
            "errors": self.errors,
            "kill9": self._kill,
            "kill9-in-transaction": self._kill_inside,
            "sigstop": self._freeze,
            "sigstop-in-transaction": self._freeze_inside,
            "disk-full": lambda: self._limit("limit_pages", self.chance.randrange(4)),
            "file-too-large": lambda: self._limit("limit_files", self.chance.randrange(20_000)),
            "compacted": self._compact,
            "compacted-while-cut": lambda: self.away(self._grow, self._compact),
            "trimmed-by-age-while-cut": lambda: self.away(self._grow, lambda: self._trim(0.02, 1 << 40)),
            "trimmed-by-size-while-cut": lambda: self.away(self._grow, lambda: self._trim(3600.0, 1000)),
            "checkpoint": self._checkpoint,
            "checkpoint-while-cut": lambda: self.away(self._checkpoint),
            "restored": lambda: self._go_back(self._put_in_place),
            "restored-and-grown": lambda: self._go_back(self._put_in_place, grow=True),
            "restored-in-place": lambda: self._go_back(self._write_over),
            "restored-in-place-and-grown": lambda: self._go_back(self._write_over, grow=True),
            "restored-while-cut": lambda: self.away(lambda: self._go_back(self._put_in_place, grow=True)),
            "restored-in-place-while-cut": lambda: self.away(lambda: self._go_back(self._write_over, grow=True)),
            "restored-grown-compacted-while-cut": lambda: self.away(
                lambda: self._go_back(self._write_over, grow=True), self._compact
            ),
            "wiped": self._wipe,
            "wiped-while-cut": lambda: self.away(self._wipe),
            "foreign-writer": self._scribble,
            "foreign-writer-while-cut": lambda: self.away(self._scribble),
            "second-writer": self._write_as_well,
            "second-handle": self._open_again,
            "other-tool": self._write_with_another_tool,
            "other-tool-while-cut": lambda: self.away(self._write_with_another_tool),
            "log-removed": self._remove_log,
            "log-removed-while-cut": lambda: self.away(self._remove_log),
            "log-replaced": self._replace_log,
            "suspended": self._suspend,
            "folder-moved": self._move_folder,
            "permission-taken": self._take_permission,
            "big-transaction": self._much_at_once,
            "big-value": self._large_value,
            **{name: partial(self._alone, happens) for name, happens in self._lifetimes.misfortunes().items()},
        }

    def heal(self) -> None:
        super().heal()
        self._rights.give()
        self._lifetimes.heal()
        for peer in self._peers:
            peer.thaw()

    def settle(self) -> None:
        """What was recorded is what is there, by a reader that shares no code with the library."""
        self.store.close()  # nothing of it is left, which the last footprint shows
        found = {
            key[len(self.prefix) :]: brief(value) for key, value, _ in self._rows("SELECT key, value, revision FROM kv")
        }
        assert found == dict(self.truth.state), "the record of the writer is not what the file holds"

    def history(self) -> Sequence[TruthCommit] | None:
        """What the file itself says of its past: every commit that is still in its log."""
        commits: dict[int, list[Op1]] = {}
        for key, value, revision in self._rows("SELECT key, value, revision FROM log ORDER BY revision, place"):
            commits.setdefault(revision, []).append(
                Op1(key[len(self.prefix) :], None if value is None else brief(value))
            )
        return [TruthCommit(revision, tuple(ops)) for revision, ops in commits.items()] or None

    def close(self) -> None:
        self.store.close()
        self._lifetimes.close()
        for peer in self._peers:
            peer.stop()
        self._home.cleanup()

    # For the owner of client-lifetime keys, whose misfortunes hold the lock.

    def _alone(self, happens: Misfortune) -> None:
        with self.lock:
            happens()

    @property
    def location(self) -> str:
        return str(self.path)

    def look(self) -> Answer:
        """Let another process end what has expired."""
        return self._other.ask("look")

    def compact(self) -> None:
        self._compact()

    def commit(self, ops: Ops) -> None:
        self._commit(self._writer, ops)

    # Writing.

    def _commit(self, peer: Peer, ops: Ops, *, stand_still: Misfortune | None = None) -> None:
        """One transaction, and what became of it. The lock is held."""
        self._sent += 1
        there = self.truth.state
        effect = [
            Op1(key, None if value is None else brief(value)) for key, value in ops if value is not None or key in there
        ]
        revision = self._ask(peer, [(MARKER, b"%d" % self._sent), *((self.prefix + k, v) for k, v in ops)], stand_still)
        if revision is not None and effect:
            self.truth.record(revision, effect)

    def _ask(self, peer: Peer, ops: Ops, stand_still: Misfortune | None) -> int | None:
        """The revision of a commit; None when it came to nothing."""
        texts = [(key, None if value is None else base64.b64encode(value).decode()) for key, value in ops]
        try:
            if stand_still is None:
                answer = peer.ask("commit", ops=texts)
            else:
                answer = peer.interrupted(stand_still, "commit", ops=texts, stand_still=True)
        except PeerGone:
            return self._find_out(peer)
        if "revision" in answer:
            return int(answer["revision"])
        self.faults.healed.wait(0.001)  # whatever is the matter, it is not over at once
        found = self._marked()
        assert found is None or answer["error"] == "UnknownOutcome", f"{answer['error']} for what was applied"
        return found

    def _find_out(self, peer: Peer) -> int | None:
        """What became of a transaction whose writer was killed."""
        revision = self._marked()
        peer.start()
        return revision

    def _marked(self) -> int | None:
        """The revision of the last transaction, if it is there; read when nobody can be about to commit it."""
        for key, value, revision in self._rows("SELECT key, value, revision FROM kv", everything=True):
            if key == MARKER and value == b"%d" % self._sent:
                return int(revision)
        return None

    def _rows(self, query: str, *, everything: bool = False) -> list[tuple[str, bytes, int]]:
        deadline = time.monotonic() + 10
        while True:
            try:
                connection = sqlite3.connect(f"file:{self.path}?mode=rw", uri=True, timeout=5)
                try:
                    rows = [(row[0].decode(), *row[1:]) for row in connection.execute(query)]
                finally:
                    connection.close()
                return [row for row in rows if everything or row[0].startswith(self.prefix)]
            except sqlite3.OperationalError:  # the folder is away for a moment
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def _grow(self) -> None:
        for _ in range(3):
            self.write(random_ops(self.chance))

    # What goes wrong with the writer.

    def _kill(self) -> None:
        """At any moment; whoever wrote finds out what became of it, and starts it again."""
        self.faults.healed.wait(self.chance.uniform(0, 0.01))
        self._writer.kill()
        self.write([])

    def _kill_inside(self) -> None:
        """When all is written and nothing is committed."""
        with self.lock:
            self._commit(self._writer, random_ops(self.chance), stand_still=self._writer.kill)

    def _freeze(self) -> None:
        self._writer.freeze()
        self.faults.healed.wait(self.chance.uniform(0, 0.5))
        self._writer.thaw()

    def _freeze_inside(self) -> None:
        """It holds the lock on the file; another writer is told so, and readers read on."""

        def stand_still() -> None:
            self._writer.freeze()
            answer = self._other.ask("scribble", key=FOREIGN, times=1)
            assert answer["done"] == 0, "two writers at once"
            self.faults.healed.wait(self.chance.uniform(0, 0.3))
            self._writer.thaw()

        with self.lock:
            self._commit(self._writer, random_ops(self.chance), stand_still=stand_still)

    def _limit(self, what: str, more: int) -> None:
        """Less room than is needed, for a while."""
        self._try(self._writer, what, more=more)
        self.faults.healed.wait(self.chance.uniform(0.01, 0.2))
        self._try(self._writer, what, more=None)

    def _try(self, peer: Peer, what: str, **more: object) -> Answer:
        try:
            return peer.ask(what, **more)
        except PeerGone:
            if peer is self._other:  # nobody who wrote has to find out first
                peer.start()
            return {}

    # What goes wrong with the file.

    def _compact(self) -> None:
        self._try(self._writer, "compact")

    def _trim(self, age: float, size: int) -> None:
        self.faults.healed.wait(age if age < 1 else 0)
        self._try(self._writer, "trim", age=age, size=size)

    def _checkpoint(self) -> None:
        self._try(self._writer, "checkpoint")

    def _go_back(self, restore: Misfortune, *, grow: bool = False) -> None:
        """Make a copy, go on for a while, and return to it; with *grow* past every revision that was seen."""
        with self.lock:
            base = self._writer.ask("copy", path=str(self._copy))["revision"]
        self.faults.healed.wait(self.chance.uniform(0, 0.1))
        self._grow()
        with self.lock:
            seen = max((c.revision for e in self.truth.epochs for c in e.commits), default=0)
            restore()
            self.truth.rewind(base)
            if grow:  # nobody looked in between
                while not self.truth.epochs[-1].commits or self.truth.epochs[-1].commits[-1].revision <= seen:
                    self._commit(self._writer, random_ops(self.chance))
        self._copy.unlink()

    def _put_in_place(self) -> None:
        """As an administrator does: nobody writes, and another file comes in the place of this one."""
        self._stop_writers()
        for beside in ("-wal", "-shm"):
            Path(f"{self.path}{beside}").unlink(missing_ok=True)
        fresh = self._folder / "fresh.db"
        shutil.copyfile(self._copy, fresh)
        os.replace(fresh, self.path)
        self._start_writers()

    def _write_over(self) -> None:
        """As ``.restore`` of the sqlite3 program does: the same file has another content."""
        self._writer.ask("restore", path=str(self._copy))

    def _wipe(self) -> None:
        with self.lock:
            self._stop_writers()
            for beside in ("-wal", "-shm", ""):
                Path(f"{self.path}{beside}").unlink(missing_ok=True)
            self.faults.healed.wait(self.chance.uniform(0, 0.1))
            self.truth.rewind(1)
            self._start_writers()

    def _stop_writers(self) -> None:
        self._writer.ask("checkpoint")
        for peer in self._peers:
            peer.ask("close")

    def _start_writers(self) -> None:
        for peer in self._peers:
            peer.ask("open")

    def _scribble(self) -> None:
        """Somebody writes beside the watched prefix, at the same time."""
        self._try(self._other, "scribble", key=FOREIGN, times=self.chance.choice((1, 20, 200)))

    def _write_as_well(self) -> None:
        """Another process writes the same keys; which of the two is next is told by the revisions."""
        for _ in range(5):
            with self.lock:
                self._commit(self._other, random_ops(self.chance))

    def _open_again(self) -> None:
        """The watching process opens the file once more, as a health check does, and a writer closes it."""
        for _ in range(3):
            with SQLiteStore(self.path, synchronous="off") as second:
                second.check()
            with self.lock:
                self._try(self._other, "close")
                self._try(self._other, "open")
                self._commit(self._other, random_ops(self.chance))

    def _write_with_another_tool(self) -> None:
        """A program that knows nothing of stores: each row that it changes is a commit."""
        for _ in range(3):
            ops = random_ops(self.chance)
            texts = [(self.prefix + k, None if v is None else base64.b64encode(v).decode()) for k, v in ops]
            with self.lock:
                there = self.truth.state
                effect = [Op1(k, None if v is None else brief(v)) for k, v in ops if v is not None or k in there]
                way = self.chance.choice(("UPSERT", "REPLACE", "UPDATE"))
                done = self._try(self._other, "scrawl", ops=texts, way=way)
                if "after" not in done:
                    continue
                if done["before"] < self.truth.epochs[-1].commits[-1].revision:
                    # The log was removed, and no store has put back yet what only the log had: this write goes with it.
                    continue
                assert done["after"] - done["before"] == len(effect), "a row that was changed is no commit"
                for revision, op in enumerate(effect, done["before"] + 1):
                    self.truth.record(revision, [op])

    def _remove_log(self) -> None:
        """Somebody removes one or both of the files beside the open one; what was acknowledged has to survive."""
        with self.lock:
            self._unlink_log(self.chance.choice((["-wal"], ["-shm"], ["-wal", "-shm"])))
            # No other process may make new files before its commits are saved: a look at the outcome of a write would.
            for _ in range(100):
                if "error" not in self._try(self._writer, "look"):
                    break
            self._commit(self._writer, random_ops(self.chance))
        self._grow()

    def _replace_log(self) -> None:
        """The same, and another process makes new ones before those that have the old ones look."""
        with self.lock:
            self._try(self._other, "close")
            if self._try(self._writer, "checkpoint").get("busy") == 0:  # else what only the old log has would be lost
                self._unlink_log(["-wal", "-shm"])
            self._try(self._other, "open")
            self._commit(self._other, random_ops(self.chance))
        self._grow()

    def _unlink_log(self, suffixes: Sequence[str]) -> None:
        for suffix in suffixes:
            Path(f"{self.path}{suffix}").unlink(missing_ok=True)

    def _suspend(self) -> None:
        """A writer stands still in a transaction for longer than everybody waits, and goes on as if nothing were."""

        def stand_still() -> None:
            self._writer.freeze()
            for _ in range(2):
                answer = self._other.ask("scribble", key=FOREIGN, times=1)
                assert answer["done"] == 0, "two writers at once"
            self.faults.healed.wait(self.chance.uniform(0.5, 1.0))
            self._writer.thaw()

        with self.lock:
            self._commit(self._writer, random_ops(self.chance), stand_still=stand_still)
        self._grow()

    def _move_folder(self) -> None:
        elsewhere = self._folder.with_name("elsewhere")
        with self.lock:
            os.rename(self._folder, elsewhere)
            self.faults.healed.wait(self.chance.uniform(0, 0.2))
            os.rename(elsewhere, self._folder)

    def _take_permission(self) -> None:
        """The watching process may not enter the folder any more, until it may again."""
        self._rights.take()
        self.faults.healed.wait(self.chance.uniform(0, 0.3))
        self._rights.give()

    def _much_at_once(self) -> None:
        keys = [f"z/many/{number:04}" for number in range(MANY)]
        self.write([(key, b"x%d" % self._sent) for key in keys])
        self.write([(key, None) for key in keys])

    def _large_value(self) -> None:
        self.write([("z/large", self.chance.randbytes(MUCH))])
        self.written += MUCH
        self.write([("z/large", None)])


class Rights:
    """What a store of this process may do with its file; taken away although root may do everything.

    Linux knows the user that files are opened as by thread: the store's look at its file is made as somebody who may
    not enter the folder. Anybody but root is just refused the folder.
    """

    def __init__(self, store: SQLiteStore, folder: Path) -> None:
        self._folder = folder
        self._verify = store._database.verify
        self._system = ctypes.CDLL(None)
        self._taken = False
        store._database.verify = self.verify  # type: ignore[method-assign]

    def take(self) -> None:
        self._taken = True
        if os.geteuid():
            self._folder.chmod(0)

    def give(self) -> None:
        self._taken = False
        if os.geteuid():
            self._folder.chmod(0o700)

    def verify(self) -> int:
        if not self._taken or os.geteuid():
            return self._verify()
        self._system.setfsuid(NOBODY)
        try:
            return self._verify()
        finally:
            self._system.setfsuid(0)
