"""The adapter and the client of REST as transports of the suite."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from queue import Queue
from typing import Any

from datasync.api import WatchRegistration
from datasync.errors import SubscriptionError
from datasync.kvdbsync.local import ProtoTxn
from datasync.restsync import Adapter, Client, serve
from datasync.syncbase.change import ChangeBytes
from datasync.syncbase.futures import Outcome
from datasync.syncbase.status import TransportStatus
from tests.conformance.transports import Trait, Transport
from tests.conftest import PATIENT, wait_until
from tests.support.registries import Texts, changes, text


class RestServer(Transport):
    """Fed over HTTP by a client of its own, which waits for each answer in a thread."""

    traits = frozenset({Trait.ANSWERS, Trait.TRANSACTIONS, Trait.HISTORY})

    def __init__(self) -> None:
        self.source = "rest"
        self._adapter = Adapter(self.source)
        self._server = serve("127.0.0.1:0", self._adapter, done_timeout=30)
        self._client = Client(self._server.url, timeout=30)
        self._waiting: list[threading.Thread] = []

    def watch(self, *args: Any, **more: Any) -> WatchRegistration:
        return self._adapter.watch(*args, **more)

    def commit(self, values: Texts) -> Any:
        txn = ProtoTxn(self._client.propagate_changes)
        for key, value in values.items():
            txn.delete(key) if value is None else txn.put(key, text(value))
        future: Future[Outcome] = Future()
        before = self._adapter.registry.revision

        def run() -> None:
            try:
                future.set_result(txn.commit())
            except SubscriptionError:  # without a subscriber a client cannot change the key, but the process itself can
                future.set_result(self._adapter.registry.propagate_changes(changes(values)))
            except BaseException as error:
                future.set_exception(error)

        self._waiting.append(threading.Thread(target=run))
        self._waiting[-1].start()
        # Requests on several connections are ordered only by their arrival.
        wait_until(lambda: future.done() or self._adapter.registry.revision > before, "the transaction has arrived")
        return future

    def write(self, key: str, data: bytes) -> None:
        self._adapter.registry.submit_changes({key: ChangeBytes(key, data)})

    def status(self) -> TransportStatus:
        return self._adapter.status()

    def close(self) -> None:
        self._adapter.close()
        for thread in self._waiting:
            thread.join(PATIENT)
        self._client.close()
        self._server.close()


class RestClient(Transport):
    """Follows a server over its event stream."""

    traits = frozenset({Trait.FOLLOWS, Trait.TRANSACTIONS, Trait.HISTORY})

    def __init__(self) -> None:
        self._adapter = Adapter("server")
        self._server = serve("127.0.0.1:0", self._adapter)
        self._client = Client(self._server.url)
        self.source = self._client.status().name

    def watch(
        self, name: str, change_queue: Queue[Any] | None, resync_queue: Queue[Any] | None, *prefixes: str, **more: Any
    ) -> WatchRegistration:
        return self._client.watch(name, change_queue, resync_queue, *prefixes, **more)

    def commit(self, values: Texts) -> None:
        self._adapter.registry.submit_changes(changes(values))

    def write(self, key: str, data: bytes) -> None:
        self._adapter.registry.submit_changes({key: ChangeBytes(key, data)})

    def status(self) -> TransportStatus:
        return self._client.status()

    def close(self) -> None:
        self._client.close()
        self._server.close()
        self._adapter.close()
