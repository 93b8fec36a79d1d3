"""The sources of cells: what is written, what goes wrong there, and how it heals."""

from __future__ import annotations

import random
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from datasync.keyval.api import Store
from datasync.keyval.memory import MemoryStore
from datasync.keyval.types import ROOT
from datasync.kvdbsync.plugin import Plugin
from datasync.resync.orchestrator import Plugin as Orchestrator
from tests.faults.history import Course, Op1, Truth, TruthCommit
from tests.faults.recorder import RawSerializer
from tests.faults.scripted import Faults, FaultyStore, ScriptedStore, write

Ops = Sequence[tuple[str, bytes | None]]
Misfortune = Callable[[], object]


class Source(ABC):
    """What a cell is about. The writer has a thread of its own; misfortunes happen in the harness's main thread.

    A misfortune undoes itself, or ``heal`` does; each of its waits is one for ``faults.healed``, so that healing is
    prompt. What a source measures on the way it notes in ``course``.
    """

    #: In front of every key.
    prefix: str = ROOT
    #: Seconds between two transactions, and between two misfortunes, at most, in the workload ``mixed``.
    pace: float = 0.008
    #: Transactions of the workload ``mixed``, unless it is told how many seconds to go on.
    transactions: int = 120
    #: False where callers feed the registry.
    sourced: bool = True
    #: True where the history is kept in this process, which is watched for what it keeps.
    within: bool = False
    #: True where an orchestrator may ask for RESYNCs: the runner says so for some workloads.
    orchestrated: bool = False
    #: Bytes that its misfortunes have written, beside the workload.
    written: int = 0

    def __init__(self, chance: random.Random) -> None:
        self.truth = Truth()
        self.course = Course()
        self.chance = chance
        self.faults = Faults(random.Random(chance.random()), chance.choice((0.0, 0.02, 0.1, 0.3)))
        self.lock = threading.Lock()  # a transaction and its record, a rewind and its record: one after another

    #: What the plugin is given.
    store: Store
    #: Asks all watchers to start over, in a quarter of the histories; nobody gets a first RESYNC before it did.
    orchestrator: Orchestrator | None = None

    @abstractmethod
    def write(self, ops: Ops) -> None:
        """Commit (key, value) pairs, None for a delete, and record what the source made of it."""

    @abstractmethod
    def misfortunes(self) -> dict[str, Misfortune]:
        """What may go wrong, by the name of the fault: one of them is called now and then."""

    def transport(self) -> Any:
        """What watchers are registered with."""
        if self.orchestrated and self.chance.random() < 0.25:
            self.orchestrator = Orchestrator(accept_timeout=0.05, ack_timeout=0.1)
        return Plugin(self.store, self.prefix, self.orchestrator, serializer=RawSerializer(), allow_delayed_start=True)

    @property
    def revision(self) -> int:
        """The source's own revision; 0 where others write to it as well."""
        return 0

    @property
    def server_watchers(self) -> int | None:
        """How many streams the server has open, by its own account; None where it does not say."""
        return None

    def heal(self) -> None:
        """Nothing goes wrong after this."""
        self.faults.heal()

    def settle(self) -> None:
        """Called when all is over, before the truth is read."""

    def history(self) -> Sequence[TruthCommit] | None:
        """The commits that the source itself still has, oldest first, keys without the prefix: its own account, read
        back between ``settle`` and ``close`` and compared with the record of its writer.

        What is older than the first of them counts as compacted. None where the source keeps no history, or none is
        left of it.
        """
        return None

    def close(self) -> None:
        self.store.close()

    def away(self, *meanwhile: Misfortune) -> None:
        """Cut the connection, let *meanwhile* happen, and mend it."""
        self.faults.cut()
        self.faults.healed.wait(self.chance.uniform(0, 0.01))
        for happens in meanwhile:
            happens()
        self.faults.healed.wait(self.chance.uniform(0, 0.01))
        self.faults.mend()

    def errors(self) -> None:
        """Whatever the store is asked, it raises now and then, of every class of error."""
        before, self.faults.rate = self.faults.rate, self.chance.choice((0.1, 0.3))
        self.faults.healed.wait(self.chance.uniform(0.01, 0.2))
        self.faults.rate = before


class ScriptedSource(Source):
    """The scripted store: rewinds to any revision, compacts anywhere."""

    within = True

    def __init__(self, chance: random.Random) -> None:
        super().__init__(chance)
        self.honest = ScriptedStore(self.truth)
        self.store = FaultyStore(self.honest, self.faults)

    @property
    def revision(self) -> int:
        return self.honest.revision

    def write(self, ops: Ops) -> None:
        with self.lock:
            write(self.honest, ops)

    def misfortunes(self) -> dict[str, Misfortune]:
        return {
            "cut": self.away,
            "errors": self.errors,
            "compacted": self.compact_somewhere,
            "compacted-to-head": self.honest.compact,
            "compacted-to-head-while-cut": lambda: self.away(self.honest.compact),
            "compacted-while-cut": lambda: self.away(self.compact_somewhere),
            "wiped": lambda: self.away(self.wipe),
            "restored": lambda: self.away(self.restore),
            "restored-and-grown": lambda: self.away(self.restore, self.grow),
            "restored-grown-compacted": lambda: self.away(self.restore, self.grow, self.compact_somewhere),
        }

    def compact_somewhere(self) -> None:
        self.honest.compact(self.chance.randint(1, max(1, self.honest.revision)))

    def wipe(self) -> None:
        with self.lock:
            self.honest.rewind(1)

    def restore(self) -> None:
        with self.lock:
            self.honest.rewind(self.chance.randint(max(1, self.honest.revision - 20), self.honest.revision))

    def grow(self) -> None:
        """Let the restored store pass every revision that was ever seen."""
        seen = max((commit.revision for epoch in self.truth.epochs for commit in epoch.commits), default=1)
        while self.honest.revision <= seen:
            self.write(random_ops(self.chance))


class RecordedSource(Source):
    """A store of the library; its truth is what its only writer was answered."""

    def __init__(self, chance: random.Random, inner: Store) -> None:
        super().__init__(chance)
        self.inner = inner
        self.store = FaultyStore(inner, self.faults)
        self.prefix = "/service/"

    def foreign(self) -> None:
        """Somebody writes beside the watched prefix: the revision moves on, and nothing is to be told."""
        with self.lock:
            write(self.inner, [("/foreign", b"x")])

    def write(self, ops: Ops) -> None:
        with self.lock:
            there = set(self.truth.state)
            done = write(self.inner, [(self.prefix + key, value) for key, value in ops])
            effect = [Op1(key, value) for key, value in ops if value is not None or key in there]
            if effect:
                self.truth.record(done.revision, effect)


class MemorySource(RecordedSource):
    within = True

    def __init__(self, chance: random.Random) -> None:
        self._memory = MemoryStore(history=chance.choice((5, 50, 10_000)))
        super().__init__(chance, self._memory)

    def misfortunes(self) -> dict[str, Misfortune]:
        return {
            "cut": self.away,
            "errors": self.errors,
            "foreign-write": self.foreign,
            "foreign-write-while-cut": lambda: self.away(self.foreign),
            "compacted": self._memory.compact,
            "compacted-while-cut": lambda: self.away(self._memory.compact),
            "foreign-write-and-compacted-while-cut": lambda: self.away(self.foreign, self._memory.compact),
            "wiped": lambda: self.away(self._wipe),
        }

    def _wipe(self) -> None:
        with self.lock:
            self._memory.rewind()
            self.truth.rewind(1)


#: Keys that cells are about, unless the workload has more; few, so that they are put, deleted and put again.
KEYS = [f"{a}{b}{n}" for a in ("a/", "a/b/", "b", "b/", "c/x/") for b in ("", "k") for n in range(5)]
#: Prefixes that overlap in every way: everything, a folder, half a name, a whole key, nothing at all.
PREFIXES = ["", "a", "a/", "a/b/", "a/b/k", "b", "b/", "b/k1", "c/x/", "c/x/k", "nothing/"]

_counter = iter(range(1, 1 << 62))


def random_ops(chance: random.Random, size: int = 0, keys: Sequence[str] = KEYS, least: int = 0) -> Ops:
    """A transaction of *size* keys, 0 for 1 to 20; values never come twice, and have *least* bytes."""
    size = size or chance.choice((1, 1, 1, 2, 3, 5, 20))
    return [
        (key, None if chance.random() < 0.4 else (b"v%d" % next(_counter)).ljust(least, b"."))
        for key in chance.sample(keys, min(size, len(keys)))
    ]


def random_puts(chance: random.Random, size: int, keys: Sequence[str]) -> Ops:
    """A transaction without deletes."""
    return [(key, b"v%d" % next(_counter)) for key in chance.sample(keys, size)]


#: Module and class by name. A source is imported when it is wanted: it may need a client library.
SOURCES: dict[str, str] = {
    "etcd": "tests.faults.etcd_source:EtcdSource",
    "etcd3": "tests.faults.etcd_cluster:EtcdClusterSource",
    "etcd-secure": "tests.faults.etcd_secure:EtcdSecureSource",
    "grpc": "tests.faults.grpc_source:GrpcSource",
    "local": "tests.faults.local_source:LocalSource",
    "memory": "tests.faults.sources:MemorySource",
    "rest": "tests.faults.rest_source:RestSource",
    "scripted": "tests.faults.sources:ScriptedSource",
    "sqlite": "tests.faults.sqlite_source:SQLiteSource",
}


def make_source(name: str, chance: random.Random) -> Source:
    """The source called *name*."""
    module, _, kind = SOURCES[name].partition(":")
    source: Source = getattr(import_module(module), kind)(chance)
    return source
