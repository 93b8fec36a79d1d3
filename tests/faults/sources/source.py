"""The interface of a source: writes, misfortunes, and healing."""

from __future__ import annotations

import random
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

from datasync.keyval.api import Store
from datasync.keyval.types import ROOT
from datasync.kvdbsync.plugin import Plugin
from datasync.resync.orchestrator import Plugin as Orchestrator
from datasync.serializer import Serializer
from tests.faults.history import Course, Truth, TruthCommit
from tests.faults.recorder import RawSerializer
from tests.faults.sources.scripted_store import Faults

Ops = Sequence[tuple[str, bytes | None]]
Misfortune = Callable[[], object]


class Source(ABC):
    """A source of changes. Writes happen in a thread of their own, misfortunes in the main thread of the harness.

    A misfortune is undone by itself or by ``heal``. It waits only on ``faults.healed``, so that healing is prompt. A
    source adds its measurements to ``course``.
    """

    #: Prefix of every key.
    prefix: str = ROOT
    #: Maximum seconds between two transactions, and between two misfortunes, in the workload ``mixed``.
    pace: float = 0.008
    #: Seconds within which every view must be correct again (I8).
    convergence: float = 2.0
    #: Transactions of the workload ``mixed``, unless it was given a duration.
    transactions: int = 120
    #: False where callers feed the registry.
    sourced: bool = True
    #: True where this process keeps the history, so that its memory proves nothing.
    within: bool = False
    #: True where an orchestrator may request RESYNCs, which the runner enables for some workloads.
    orchestrated: bool = False
    #: Number of watchers at the beginning, set by the runner: each of them takes what a misfortune writes.
    watchers: int = 0
    #: Bytes that misfortunes have written, in addition to the workload.
    written: int = 0

    def __init__(self, chance: random.Random) -> None:
        self.truth = Truth()
        self.course = Course()
        self.chance = chance
        self.faults = Faults(random.Random(chance.random()), chance.choice((0.0, 0.02, 0.1, 0.3)))
        self.lock = threading.Lock()  # held for a transaction or a rewind together with its record

    #: The store for the plugin.
    store: Store
    #: Requests a RESYNC of all watchers, in a quarter of the histories; no first RESYNC is sent before it.
    orchestrator: Orchestrator | None = None
    #: Reads the bytes of a value.
    serializer: Serializer = RawSerializer()

    @abstractmethod
    def write(self, ops: Ops) -> None:
        """Commit (key, value) pairs, None for a delete, and record the resulting commit."""

    @abstractmethod
    def misfortunes(self) -> dict[str, Misfortune]:
        """The misfortunes by fault name; one of them is called at random moments."""

    def transport(self) -> Any:
        """The transport that watchers are registered with."""
        if self.orchestrated and self.chance.random() < 0.25:
            self.orchestrator = Orchestrator(accept_timeout=0.05, ack_timeout=0.1)
        return Plugin(self.store, self.prefix, self.orchestrator, serializer=RawSerializer(), allow_delayed_start=True)

    @property
    def revision(self) -> int:
        """The revision of the source; 0 where other clients write to it as well."""
        return 0

    @property
    def server_watchers(self) -> int | None:
        """Open streams as the server reports them; None if it does not."""
        return None

    def heal(self) -> None:
        """End all misfortunes."""
        self.faults.heal()

    def settle(self) -> None:
        """Called at the end, before the truth is read."""

    def history(self) -> Sequence[TruthCommit] | None:
        """The commits that the source still has, oldest first, keys without the prefix.

        They are read between ``settle`` and ``close`` and compared with the record of the writer. Older commits count
        as compacted. None where the source keeps no history, or has none left.
        """
        return None

    @property
    def parts(self) -> Mapping[str, Source]:
        """The sources whose truth the logs are judged by, by ``Log.source``: itself, or the members of an aggregate."""
        return {"": self}

    def close(self) -> None:
        self.store.close()

    def away(self, *meanwhile: Misfortune) -> None:
        """Disconnect, run *meanwhile*, and reconnect."""
        self.faults.cut()
        self.faults.healed.wait(self.chance.uniform(0, 0.01))
        for happens in meanwhile:
            happens()
        self.faults.healed.wait(self.chance.uniform(0, 0.01))
        self.faults.mend()

    def errors(self) -> None:
        """Let every call of the store raise now and then, with errors of every class."""
        before, self.faults.rate = self.faults.rate, self.chance.choice((0.1, 0.3))
        self.faults.healed.wait(self.chance.uniform(0.01, 0.2))
        self.faults.rate = before


#: Keys that are written, unless the workload has more: few, so that they are put, deleted and put again.
KEYS = [f"{a}{b}{n}" for a in ("a/", "a/b/", "b", "b/", "c/x/") for b in ("", "k") for n in range(5)]
#: Prefixes that overlap in every way: everything, folders, parts of names, whole keys, nothing.
PREFIXES = ["", "a", "a/", "a/b/", "a/b/k", "b", "b/", "b/k1", "c/x/", "c/x/k", "nothing/"]
_counter = iter(range(1, 1 << 62))


def random_ops(chance: random.Random, size: int = 0, keys: Sequence[str] = KEYS, least: int = 0) -> Ops:
    """A transaction of *size* keys (0: 1 to 20); values are unique and have at least *least* bytes."""
    size = size or chance.choice((1, 1, 1, 2, 3, 5, 20))
    return [
        (key, None if chance.random() < 0.4 else (b"v%d" % next(_counter)).ljust(least, b"."))
        for key in chance.sample(keys, min(size, len(keys)))
    ]


def random_puts(chance: random.Random, size: int, keys: Sequence[str]) -> Ops:
    """A transaction without deletes."""
    return [(key, b"v%d" % next(_counter)) for key in chance.sample(keys, size)]


#: Module and class by name. A source is imported on demand: it may need a client library.
SOURCES: dict[str, str] = {
    "aggregate": "tests.faults.sources.aggregate:AggregateSource",
    "consul": "tests.faults.sources.consul:ConsulSource",
    "consul-nginx": "tests.faults.sources.consul:ConsulNginxSource",
    "etcd": "tests.faults.sources.etcd:EtcdSource",
    "etcd-leases": "tests.faults.sources.etcd_leases:EtcdLeasesSource",
    "etcd3": "tests.faults.sources.etcd_cluster:EtcdClusterSource",
    "etcd-balanced": "tests.faults.sources.etcd_between:EtcdBalancedSource",
    "etcd-nginx": "tests.faults.sources.etcd_between:EtcdNginxSource",
    "etcd-proxy": "tests.faults.sources.etcd_between:EtcdProxySource",
    "etcd-secure": "tests.faults.sources.etcd_secure:EtcdSecureSource",
    "file": "tests.faults.sources.file:FileSource",
    "grpc": "tests.faults.sources.grpc:GrpcSource",
    "grpc-nginx": "tests.faults.sources.grpc_nginx:GrpcNginxSource",
    "kafka": "tests.faults.sources.kafka:KafkaSource",
    "local": "tests.faults.sources.local:LocalSource",
    "memory": "tests.faults.sources.memory:MemorySource",
    "redis": "tests.faults.sources.redis:RedisSource",
    "redis-cluster": "tests.faults.sources.redis_groups:RedisClusterSource",
    "redis-foreign": "tests.faults.sources.redis_foreign:RedisForeignSource",
    "redis-sentinel": "tests.faults.sources.redis_groups:RedisSentinelSource",
    "postgres": "tests.faults.sources.postgres:PostgresSource",
    "postgres-disk": "tests.faults.sources.postgres_groups:PostgresDiskSource",
    "postgres-pair": "tests.faults.sources.postgres_groups:PostgresPairSource",
    "postgres-pooled": "tests.faults.sources.postgres_groups:PostgresPooledSource",
    "postgres-table": "tests.faults.sources.postgres_table:PostgresTableSource",
    "postgres-table-disk": "tests.faults.sources.postgres_groups:PostgresTableDiskSource",
    "postgres-table-pair": "tests.faults.sources.postgres_groups:PostgresTablePairSource",
    "postgres-table-upgraded": "tests.faults.sources.postgres_groups:PostgresTableUpgradedSource",
    "postgres-upgraded": "tests.faults.sources.postgres_groups:PostgresUpgradedSource",
    "rest": "tests.faults.sources.rest:RestSource",
    "rest-nginx": "tests.faults.sources.rest_nginx:RestNginxSource",
    "scripted": "tests.faults.sources.memory:ScriptedSource",
    "sqlite": "tests.faults.sources.sqlite:SQLiteSource",
    "valkey": "tests.faults.sources.redis:ValkeySource",
}


def make_source(name: str, chance: random.Random) -> Source:
    """The source called *name*."""
    module, _, kind = SOURCES[name].partition(":")
    source: Source = getattr(import_module(module), kind)(chance)
    return source
