"""The sources of cells: what is written, what goes wrong there, and how it heals."""

from __future__ import annotations

import random
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from datasync.keyval.api import Store
from datasync.keyval.types import ROOT
from datasync.kvdbsync.plugin import Plugin
from datasync.resync.orchestrator import Plugin as Orchestrator
from tests.faults.history import Course, Truth, TruthCommit
from tests.faults.recorder import RawSerializer
from tests.faults.sources.scripted_store import Faults

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
    "etcd": "tests.faults.sources.etcd:EtcdSource",
    "etcd3": "tests.faults.sources.etcd_cluster:EtcdClusterSource",
    "etcd-secure": "tests.faults.sources.etcd_secure:EtcdSecureSource",
    "grpc": "tests.faults.sources.grpc:GrpcSource",
    "local": "tests.faults.sources.local:LocalSource",
    "memory": "tests.faults.sources.memory:MemorySource",
    "rest": "tests.faults.sources.rest:RestSource",
    "scripted": "tests.faults.sources.memory:ScriptedSource",
    "sqlite": "tests.faults.sources.sqlite:SQLiteSource",
}


def make_source(name: str, chance: random.Random) -> Source:
    """The source called *name*."""
    module, _, kind = SOURCES[name].partition(":")
    source: Source = getattr(import_module(module), kind)(chance)
    return source
