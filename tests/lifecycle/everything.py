"""A program that has everything open at once: each store, each transport, both sides of them, and who consumes them.

No pytest in here: the programs of this folder run as their users' would.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from queue import Queue
from types import TracebackType
from typing import Any

from google.protobuf.wrappers_pb2 import StringValue

from datasync.errors import ForkedError
from datasync.events import ResyncEvent
from datasync.keyval import connect
from datasync.keyval.api import Store
from datasync.keyval.types import PutOp
from datasync.kvdbsync import Plugin
from datasync.kvdbsync.local import ProtoTxn
from datasync.options import with_client_lifetime_ttl
from datasync.resync.orchestrator import Plugin as Orchestrator
from datasync.syncbase.change import Change
from datasync.syncbase.registry import Registry

#: What may be called on an open handle; in a forked child each is refused or works, and none hangs.
Uses = dict[str, Callable[[], object]]
#: Seconds after which a test gives up.
PATIENCE = 30.0
#: The variable with the URL of a PostgreSQL server; without one there is no line of it.
POSTGRES = "DATASYNC_LIFECYCLE_POSTGRES"


def limit_life(seconds: int) -> None:
    """End this process after *seconds*, with all stacks on stderr. (A child does not inherit it.)

    It ends at once when one of its threads fails: the others would wait for that one until the end.
    """
    faulthandler.register(signal.SIGALRM, chain=True)
    signal.alarm(seconds)
    threading.excepthook = _end_with_thread


def _end_with_thread(failed: threading.ExceptHookArgs) -> None:
    threading.__excepthook__(failed)
    sys.stderr.flush()
    os._exit(1)


def text(value: object) -> StringValue:
    return StringValue(value=str(value))


class Consumer:
    """Reads one queue in a thread of its own, notes what it was told, and answers."""

    def __init__(self, name: str) -> None:
        self.queue: Queue[Any] = Queue()
        #: Every value that a CHANGE brought, in order.
        self.values: list[str] = []
        #: The reason of every RESYNC.
        self.resyncs: list[str] = []
        self._told = threading.Condition()  # guards the two above
        self._thread = threading.Thread(target=self._run, name=f"consumer-{name}", daemon=True)
        self._thread.start()

    def wait_for(self, condition: Callable[[], bool], timeout: float = PATIENCE) -> bool:
        with self._told:
            return self._told.wait_for(condition, timeout)

    def stop(self) -> None:
        if self._thread.is_alive():  # not so in a forked child
            self.queue.put(None)
            self._thread.join(PATIENCE)

    def __enter__(self) -> Consumer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self) -> None:
        while (event := self.queue.get()) is not None:
            with self._told:
                if isinstance(event, ResyncEvent):
                    self.resyncs.append(event.reason.value)
                else:
                    self.values += [change.get_value(StringValue()).value for change in event.get_changes()]
                self._told.notify_all()
            event.done()


class Line(ABC):
    """One way from a writer to a subscriber, open on both ends."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.consumer = Consumer(name)
        self.written = 0
        #: A subscription that nobody answers, and the event that waits there.
        self.held: Queue[Any] = Queue()

    def write(self) -> None:
        """Write the next number, and return when the source has it."""
        self.put(f"k/{self.written % 7}", str(self.written + 1))
        self.written += 1

    def arrived(self, timeout: float = PATIENCE) -> bool:
        """True as soon as the consumer was told all that was written, all of it once, in order."""
        wanted = self.written
        self.consumer.wait_for(lambda: len(self.consumer.values) >= wanted, timeout)
        return self.consumer.values[:wanted] == [str(number) for number in range(1, wanted + 1)]

    @abstractmethod
    def put(self, key: str, value: str) -> object:
        """Write *value*, and return when the source has it."""

    @abstractmethod
    def uses(self) -> Uses:
        """Everything that may be done with what is open."""

    @abstractmethod
    def status(self) -> Any:
        """How the subscriber's side is doing."""

    @abstractmethod
    def close(self) -> None:
        """Close all of it."""


class StoreLine(Line):
    """A store, a plugin on it, and a watch without a registry."""

    def __init__(self, name: str, store: Store, orchestrator: Orchestrator | None = None) -> None:
        super().__init__(name)
        self.store = store
        self.prefix = f"/lifecycle/{name}-{os.getpid()}-{time.time_ns()}/"  # a server may serve others too
        self.broker = store.new_broker(self.prefix)
        self.plugin = Plugin(store, self.prefix, orchestrator)
        self.registration = self.plugin.watch("agent", self.consumer.queue, self.consumer.queue, "k/")
        self.other = self.plugin.watch("held", self.held, self.held, "k/", "h/")
        self.plugin.init()
        self.plugin.after_init()
        self.plugin.wait_ready(PATIENCE)
        self.watch = store.new_watcher(self.prefix).watch(lambda change: None)
        self.scan = store.scan(self.prefix)
        self.broker.put("mine", b'"x"', with_client_lifetime_ttl())

    def put(self, key: str, value: str) -> object:
        return self.plugin.put(key, text(value))

    def status(self) -> Any:
        return self.plugin.status()

    def uses(self) -> Uses:
        store, plugin, spare = self.store, self.plugin, Queue[Any]()
        return {
            "store.check": store.check,
            "store.read": lambda: store.read("x"),
            "store.scan": lambda: list(store.scan("x")),
            "store.commit": lambda: store.commit([PutOp("x", b"x")]),
            "store.stream": lambda: next(iter(store.stream("x", 1))),
            "broker.put": lambda: self.broker.put("x", b"x"),
            "broker.list": lambda: list(self.broker.list_values("")),
            "broker.new_txn": lambda: self.broker.new_txn().put("x", b"x").commit(),
            "watcher.watch": lambda: store.new_watcher("x").watch(lambda change: None, timeout=1.0).close(),
            "plugin.put": lambda: plugin.put("x", text("x")),
            "plugin.delete": lambda: plugin.delete("x"),
            "plugin.status": plugin.status,
            "plugin.wait_ready": lambda: plugin.wait_ready(0.1),
            "plugin.watch": lambda: plugin.watch("child", spare, spare, "x/"),
            "plugin.init": plugin.init,
            "plugin.after_init": plugin.after_init,
            "registration.register": lambda: self.registration.register("agent", "c/"),
            "registration.unregister": lambda: self.registration.unregister("k/"),
            **registry_uses(plugin.registry),
        }

    def close(self) -> None:
        self.watch.close()
        self.registration.close()
        self.plugin.close()
        self.store.close()
        self.consumer.stop()


class LocalLine(Line):
    """A registry that is its own source, and its transactions."""

    def __init__(self) -> None:
        super().__init__("local")
        self.registry = Registry("lifecycle")
        self.registration = self.registry.watch("agent", self.consumer.queue, self.consumer.queue, "k/")
        self.registry.watch("held", self.held, self.held, "h/")
        self.txn = ProtoTxn(self.registry.propagate_changes)
        #: A caller that waits for an answer that does not come.
        self.future = self.registry.submit_changes({"h/x": Change("h/x", text("x"))}, timeout=600)
        self.event = self.held.get(timeout=PATIENCE)

    def put(self, key: str, value: str) -> object:
        return self.txn.put(key, text(value)).commit()

    def status(self) -> Any:
        return self.registry.status()

    def uses(self) -> Uses:
        return {
            "txn.put": lambda: self.txn.put("x", text("x")),
            "txn.delete": lambda: self.txn.delete("x"),
            "txn.commit": self.txn.commit,
            "future.result": self.future.result,
            "future.exception": self.future.exception,
            "future.done": self.future.done,
            "future.add_done_callback": lambda: self.future.add_done_callback(lambda future: None),
            "event.done": self.event.done,
            "registration.register": lambda: self.registration.register("agent", "c/"),
            "registration.unregister": lambda: self.registration.unregister("k/"),
            **registry_uses(self.registry),
        }

    def close(self) -> None:
        self.registry.close()
        self.consumer.stop()


class GrpcLine(Line):
    """A server with its adapter, and a client of it in the same process."""

    def __init__(self) -> None:
        from datasync import grpcsync  # inside: gRPC threads and handlers begin with it

        super().__init__("grpc")
        self.server = grpcsync.serve("127.0.0.1:0", change_timeout=600.0)
        self.adapter = self.server.adapter
        self.registration = self.adapter.watch("agent", self.consumer.queue, self.consumer.queue, "k/")
        self.adapter.watch("held", self.held, self.held, "h/")
        self.client = grpcsync.Client(self.server.address)
        self.client.wait_ready(PATIENCE)
        # Of another client: a stream is answered in order, and this one waits.
        self.waiting = grpcsync.Client(self.server.address, source="waiting", answer_timeout=600.0)
        self.future = self.waiting.put_async("h/x", text("x"))
        self.event = self.held.get(timeout=PATIENCE)

    def put(self, key: str, value: str) -> object:
        return self.client.put(key, text(value))

    def status(self) -> Any:
        return self.adapter.status()

    def uses(self) -> Uses:
        client, adapter, spare = self.client, self.adapter, Queue[Any]()
        return {
            "client.put": lambda: client.put("x", text("x")),
            "client.put_async": lambda: client.put_async("x", text("x")),
            "client.delete": lambda: client.delete("x"),
            "client.resync": lambda: client.resync({}),
            "client.status": client.status,
            "client.wait_ready": lambda: client.wait_ready(0.1),
            "future.result": self.future.result,
            "future.exception": self.future.exception,
            "adapter.watch": lambda: adapter.watch("child", spare, spare, "x/"),
            "adapter.status": adapter.status,
            "adapter.wait_ready": lambda: adapter.wait_ready(0.1),
            "adapter.registries": lambda: adapter.registries,
            "adapter.forget": lambda: adapter.forget("x"),
            "event.done": self.event.done,
            "registration.register": lambda: self.registration.register("agent", "c/"),
            "registration.unregister": lambda: self.registration.unregister("k/"),
        }

    def close(self) -> None:
        with suppress(ForkedError):
            self.event.done()
        self.waiting.close()
        self.client.close()
        self.registration.close()
        self.server.close()
        self.consumer.stop()


class RestLine(Line):
    """An adapter, its server, and a client of it in the same process, which watches and writes."""

    def __init__(self) -> None:
        from datasync import restsync  # inside: the extra is not everywhere

        super().__init__("rest")
        self.adapter = restsync.Adapter()
        self.server = restsync.serve("127.0.0.1:0", self.adapter, token="lifecycle")
        self.taker = Consumer("rest-taker")
        self.adapter.watch("agent", self.taker.queue, self.taker.queue, "k/")
        self.client = restsync.Client(self.server.url, token="lifecycle")
        self.registration = self.client.watch("agent", self.consumer.queue, self.consumer.queue, "k/")
        self.client.wait_ready(PATIENCE)
        self.consumer.wait_for(lambda: bool(self.consumer.resyncs))

    def put(self, key: str, value: str) -> object:
        return self.client.put(key, text(value))

    def status(self) -> Any:
        return self.client.status()

    def uses(self) -> Uses:
        client, adapter, spare = self.client, self.adapter, Queue[Any]()
        return {
            "client.put": lambda: client.put("x", text("x")),
            "client.delete": lambda: client.delete("x"),
            "client.resync": lambda: client.resync({}),
            "client.propagate_changes": lambda: client.propagate_changes({"x": Change("x", text("x"))}),
            "client.get": lambda: client.get("x"),
            "client.list": client.list,
            "client.watch": lambda: client.watch("child", spare, spare, "x/"),
            "client.status": client.status,
            "client.wait_ready": lambda: client.wait_ready(0.1),
            "adapter.watch": lambda: adapter.watch("child", spare, spare, "x/"),
            "adapter.status": adapter.status,
            "adapter.wait_ready": lambda: adapter.wait_ready(0.1),
            "server.start": self.server.start,
            "registration.register": lambda: self.registration.register("agent", "c/"),
            "registration.unregister": lambda: self.registration.unregister("k/"),
            **registry_uses(client.registry),
        }

    def close(self) -> None:
        self.client.close()
        self.server.close()
        self.adapter.close()
        self.consumer.stop()
        self.taker.stop()


class Everything:
    """All lines at once, and an orchestrator. A context manager that closes them.

    Args:
      folder: For the files of stores.
      etcd: The URL of a server; without one there is no line of etcd's.
      only: Names of the lines that are wanted; all of them when empty.
    """

    def __init__(self, folder: Path, etcd: str = "", *only: str) -> None:
        self.orchestrator = Orchestrator()
        self._folder = folder
        self._etcd = etcd
        self.lines: list[Line] = []
        makers: dict[str, Callable[[], Line]] = {
            "local": LocalLine,
            "memory": lambda: StoreLine("memory", connect("memory://"), self.orchestrator),
            "sqlite": lambda: StoreLine("sqlite", connect(f"sqlite://{folder}/lifecycle.db", synchronous="off")),
            "rest": RestLine,
            "grpc": GrpcLine,
        }
        if etcd:
            makers["etcd"] = lambda: StoreLine("etcd", connect(etcd))
        if postgres := os.environ.get(POSTGRES):
            makers["postgres"] = lambda: StoreLine("postgres", connect(postgres))
        for name, make in makers.items():
            if not only or name in only:
                self.lines.append(make())
        # The first RESYNC of what it orchestrates; a held subscription does not answer, and is not waited for here.
        threading.Thread(target=self._orchestrate, name="orchestrate", daemon=True).start()
        for line in self.lines:
            if isinstance(line, StoreLine):
                line.consumer.wait_for(lambda line=line: bool(line.consumer.resyncs))  # type: ignore[misc]

    def _orchestrate(self) -> None:
        try:
            self.orchestrator.do_resync()
        except Exception:
            pass  # closed meanwhile

    def line(self, name: str) -> Line:
        return next(line for line in self.lines if line.name == name)

    def __iter__(self) -> Iterator[Line]:
        return iter(self.lines)

    def uses(self) -> Uses:
        """Those of every line, and of the orchestrator."""
        spare = {
            "orchestrator.register": lambda: self.orchestrator.register("child"),
            "orchestrator.do_resync": self.orchestrator.do_resync,
        }
        return {f"{line.name}: {name}": use for line in self.lines for name, use in line.uses().items()} | spare

    def close(self) -> None:
        self.orchestrator.close()
        for line in self.lines:
            line.close()

    def __enter__(self) -> Everything:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def registry_uses(registry: Registry) -> Uses:
    spare = Queue[Any]()
    return {
        "registry.submit_changes": lambda: registry.submit_changes({}),
        "registry.propagate_changes": lambda: registry.propagate_changes({}),
        "registry.submit_resync": lambda: registry.submit_resync({}),
        "registry.propagate_resync": lambda: registry.propagate_resync({}),
        "registry.request_resync": lambda: registry.request_resync("agent"),
        "registry.get": lambda: registry.get("x"),
        "registry.items": registry.items,
        "registry.snapshot": registry.snapshot,
        "registry.observe": lambda: registry.observe(lambda revision, changes: None),
        "registry.subscriptions": lambda: registry.subscriptions,
        "registry.status": registry.status,
        "registry.wait_ready": lambda: registry.wait_ready(0.1),
        "registry.watch": lambda: registry.watch("child", spare, spare, "x/"),
    }
