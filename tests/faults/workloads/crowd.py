"""Crowds of clients that lose their server together: a gate in front of the server, and the process of the crowd.

``python -m tests.faults.workloads.crowd`` starts the crowd; ``tests.support.child_process`` has its protocol.
"""

from __future__ import annotations

import gc
import os
import queue
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from datasync.syncbase.status import TransportState
from tests.support.child_process import Answer, answer_questions

#: Bytes read at once.
CHUNK = 65536


class Gate:
    """Passes connections on to *target* while it is open; while it is shut, whoever comes is noted and reset.

    One thread, whatever the number of connections. A context manager.
    """

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        #: Monotonic times at which somebody came, open or shut.
        self.attempts: list[float] = []
        self._shut = False
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._wake, waker = socket.socketpair()
        self._waker = waker
        self._wake.setblocking(False)
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._errands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="gate", daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        """``host:port`` for clients."""
        return f"127.0.0.1:{self.port}"

    def shut(self) -> float:
        """Reset every connection, and each that comes; when it was done."""
        return self._ask(self._end_all, True)

    def open(self) -> float:
        """Let connections through again; from when on."""
        return self._ask(lambda: None, False)

    def close(self) -> None:
        """End everything."""
        self._stopping = True
        self._ask(self._end_all, True)
        self._thread.join(5)
        for one in (self._listener, self._wake, self._waker):
            one.close()
        self._selector.close()

    def __enter__(self) -> Gate:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, errand: Callable[[], None], shut: bool) -> float:
        done: queue.SimpleQueue[float] = queue.SimpleQueue()

        def run() -> None:
            self._shut = shut
            errand()
            done.put(time.monotonic())

        self._errands.put(run)
        self._waker.send(b"x")
        return done.get(timeout=10)

    def _run(self) -> None:
        while not self._stopping:
            for key, _ in self._selector.select():
                one = key.fileobj
                if one is self._wake:
                    self._wake.recv(CHUNK)
                    while not self._errands.empty():
                        self._errands.get()()
                elif one is self._listener:
                    self._accept()
                else:
                    assert isinstance(one, socket.socket)
                    self._pass_on(one)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.attempts.append(time.monotonic())
            if self._shut:
                _reset(client)
                continue
            try:
                server = socket.create_connection(self._target, 5)
            except OSError:
                _reset(client)
                continue
            for one, other in ((client, server), (server, client)):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._pairs[one] = other
                self._selector.register(one, selectors.EVENT_READ)

    def _pass_on(self, one: socket.socket) -> None:
        other = self._pairs.get(one)
        if other is None:
            return  # ended in this round
        try:
            data = one.recv(CHUNK)
            if data:
                other.sendall(data)
                return
        except OSError:
            pass
        self._end(one)

    def _end(self, one: socket.socket) -> None:
        other = self._pairs.pop(one)
        del self._pairs[other]
        for each in (one, other):
            self._selector.unregister(each)
            _reset(each)

    def _end_all(self) -> None:
        for one in list(self._pairs):
            if one in self._pairs:
                self._end(one)


def _reset(one: socket.socket) -> None:
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    one.close()


class Crowd:
    """Clients of one kind in this process."""

    def __init__(self) -> None:
        self._clients: list[Any] = []
        self._ready: Callable[[Any], bool] = lambda client: True

    def make(self, kind: str, target: str, count: int) -> Answer:
        """So many clients of *target*."""
        self._ready = getattr(self, f"_{kind}_ready")
        for _ in range(count):
            self._clients.append(getattr(self, f"_{kind}")(target))
        return {}

    def ready(self) -> Answer:
        """How many are in touch with their server."""
        return {"ready": sum(1 for client in self._clients if self._ready(client))}

    def drop(self, count: int = 10_000) -> Answer:
        """Close up to so many, from several threads; how many are left."""
        parting, self._clients = self._clients[:count], self._clients[count:]
        closers = [threading.Thread(target=_close_all, args=(parting[part::16],)) for part in range(16)]
        for closer in closers:
            closer.start()
        for closer in closers:
            closer.join()
        return {"left": len(self._clients)}

    def footprint(self) -> Answer:
        """What there is in this process; threads of grpc end when they like, and are not counted."""
        gc.collect()
        threads = [one for one in threading.enumerate() if one.name.startswith("datasync")]
        return {"threads": len(threads), "descriptors": len(os.listdir("/proc/self/fd"))}

    def _grpc(self, target: str) -> Any:
        from datasync.grpcsync import Client

        return Client(target)

    def _grpc_ready(self, client: Any) -> bool:
        return bool(client.status().state is TransportState.READY)

    def _rest(self, target: str) -> Any:
        from datasync.restsync import Client

        client = Client(f"http://{target}")
        events: queue.Queue[Any] = queue.Queue()
        client.watch("crowd", events, events, "k/")
        return client

    def _rest_ready(self, client: Any) -> bool:
        return bool(client.status().state is TransportState.READY)

    def _etcd(self, target: str) -> Any:
        from datasync.keyval.urls import connect
        from datasync.kvdbsync.plugin import Plugin

        store = connect(f"etcd://{target}")
        plugin = Plugin(store, "storm/", allow_delayed_start=True)
        events: queue.Queue[Any] = queue.Queue()
        plugin.watch("crowd", events, events, "")
        plugin.after_init()
        return _Both(plugin, store)

    def _etcd_ready(self, client: Any) -> bool:
        return bool(client.plugin.status().state is TransportState.READY)


def _close_all(clients: list[Any]) -> None:
    for client in clients:
        client.close()


class _Both:
    """A plugin and its store."""

    def __init__(self, plugin: Any, store: Any) -> None:
        self.plugin = plugin
        self._store = store

    def close(self) -> None:
        self.plugin.close()
        self._store.close()


if __name__ == "__main__":
    crowd = Crowd()
    answer_questions(
        {"make": crowd.make, "ready": crowd.ready, "drop": crowd.drop, "footprint": crowd.footprint},
    )
