"""The transports, each as a test sees it: something to watch, and a source to change."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from enum import Enum
from pathlib import Path
from queue import Queue
from typing import Any
from uuid import uuid4

import pytest

from datasync.api import WatchRegistration
from datasync.keyval import DeleteOp, PutOp, Store, WriteOp, connect
from datasync.kvdbsync.local import ProtoTxn
from datasync.kvdbsync.plugin import Plugin
from datasync.syncbase.change import ChangeBytes
from datasync.syncbase.futures import PropagationFuture
from datasync.syncbase.registry import Registry
from datasync.syncbase.status import TransportStatus
from tests.support.registries import Texts, as_json, text

ETCD = ("etcd34", "etcd35")


class Trait(Enum):
    """What a transport is like; a test names what it needs."""

    #: It follows a source: the first event is always a RESYNC, and a refused event leads to one.
    FOLLOWS = "follows a source"
    #: Whoever makes a change is told how the subscribers answered.
    ANSWERS = "answers its callers"
    #: ``put`` and ``delete`` write to its source.
    WRITES = "writes"
    #: Every transaction is delivered, and not only the net effect of several.
    HISTORY = "delivers every transaction"
    #: Several keys can be changed by one transaction.
    TRANSACTIONS = "changes several keys at once"


class Transport(ABC):
    """A transport and its source."""

    traits: frozenset[Trait]
    #: What ``datasync.current_source`` is in its events.
    source: str

    @abstractmethod
    def watch(
        self, name: str, change_queue: Queue[Any] | None, resync_queue: Queue[Any] | None, *prefixes: str, **more: Any
    ) -> WatchRegistration:
        """Subscribe."""

    @abstractmethod
    def commit(self, values: Texts) -> Future[Any] | None:
        """Change the source, by one transaction where it has such; the answer of the subscribers where there is one.

        What it changes is known to the transport when it returns, as far as nothing has to be read first.
        """

    @abstractmethod
    def write(self, key: str, data: bytes) -> None:
        """Put bytes that may be no JSON at all."""

    @abstractmethod
    def status(self) -> TransportStatus: ...

    @abstractmethod
    def close(self) -> None: ...


class Local(Transport):
    """A registry that is fed by transactions of this process."""

    traits = frozenset({Trait.ANSWERS, Trait.TRANSACTIONS, Trait.HISTORY})

    def __init__(self) -> None:
        self._registry = Registry("local")
        self.source = "local"

    def watch(self, *args: Any, **more: Any) -> WatchRegistration:
        return self._registry.watch(*args, **more)

    def status(self) -> TransportStatus:
        return self._registry.status()

    def close(self) -> None:
        self._registry.close()

    def commit(self, values: Texts) -> PropagationFuture | None:
        txn = ProtoTxn(self._registry.submit_changes)
        for key, value in values.items():
            txn.delete(key) if value is None else txn.put(key, text(value))
        return txn.commit()

    def write(self, key: str, data: bytes) -> None:
        self._registry.submit_changes({key: ChangeBytes(key, data)})


class Stored(Transport):
    """A store behind a plugin; the changes come from another client of the store."""

    traits = frozenset({Trait.FOLLOWS, Trait.WRITES, Trait.TRANSACTIONS, Trait.HISTORY})

    def __init__(self, url: str) -> None:
        self.prefix = f"/{uuid4().hex}/"
        self.store = connect(url)
        self.other: Store = connect(url)
        self.plugin = Plugin(self.store, self.prefix)
        self.plugin.after_init()
        self.source = f"{self.store.name}#{self.prefix}"
        self.other.commit([PutOp("another application's key", b'"foreign"')])

    def watch(self, *args: Any, **more: Any) -> WatchRegistration:
        return self.plugin.watch(*args, **more)

    def commit(self, values: Texts) -> None:
        ops: list[WriteOp] = []
        for key, value in values.items():
            data = as_json(value)
            ops.append(DeleteOp(self.prefix + key) if data is None else PutOp(self.prefix + key, data))
        self.other.commit(ops)

    def write(self, key: str, data: bytes) -> None:
        self.other.commit([PutOp(self.prefix + key, data)])

    def status(self) -> TransportStatus:
        return self.plugin.status()

    def close(self) -> None:
        self.plugin.close()
        self.store.close()
        self.other.close()


class StoredWithoutHistory(Stored):
    """The same with a store of which only the net effect between two looks is known."""

    traits = Stored.traits - {Trait.HISTORY}


def _remote(module: str, kind: str) -> Callable[[], type[Transport]]:
    """Remote transports are imported when they are asked for: they want extras, and this module."""
    return lambda: getattr(importlib.import_module(f"tests.conformance.{module}"), kind)


#: Transports that need no server of another kind; any other name is that of a fixture which has one.
MADE: dict[str, tuple[Callable[[], type[Transport]], Callable[..., Transport]]] = {
    "local": (lambda: Local, lambda kind, folder: kind()),
    "memory": (lambda: Stored, lambda kind, folder: kind(f"memory://{uuid4().hex}")),
    "sqlite": (lambda: Stored, lambda kind, folder: kind(f"sqlite://{folder}/store.db")),
    "grpc": (_remote("grpc", "OverGrpc"), lambda kind, folder: kind()),
    "rest-server": (_remote("rest", "RestServer"), lambda kind, folder: kind()),
    "rest-client": (_remote("rest", "RestClient"), lambda kind, folder: kind()),
}


@pytest.fixture(params=[*MADE, *(pytest.param(name, marks=pytest.mark.etcd) for name in ETCD)])
def transport(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Transport]:
    """A transport with an empty source; the test is skipped when it lacks a trait that ``@pytest.mark.needs`` names."""
    find, make = MADE.get(
        request.param, (lambda: Stored, lambda kind, folder: kind(request.getfixturevalue(request.param).url))
    )
    kind = find()
    wanted = {trait for marker in request.node.iter_markers("needs") for trait in marker.args}
    missing = wanted - kind.traits
    if missing:
        pytest.skip(f"this transport does not: {', '.join(trait.value for trait in missing)}")
    made = make(kind, tmp_path)
    yield made
    made.close()
