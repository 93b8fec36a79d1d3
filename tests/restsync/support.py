"""Helpers of the tests over HTTP: a subscriber with a scripted reaction, and raw connections."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from queue import Queue
from types import TracebackType
from typing import Any

import urllib3

from datasync.events import ResyncEvent
from datasync.restsync import Server
from datasync.runtime.threads import Worker

JSON = {"Content-Type": "application/json"}
PROTO = {"Content-Type": "application/x-protobuf"}


class Subscriber:
    """Handles every event of its prefixes in a thread: rejects keys with ``refuse``, ignores keys with ``silent``,
    and accepts the rest. A *willing* subscriber accepts everything."""

    def __init__(self, watcher: Any, *prefixes: str, name: str = "agent", willing: bool = False) -> None:
        self._willing = willing
        self.events: list[Any] = []
        self._queue: Queue[Any] = Queue()
        self._worker = Worker("test-subscriber", self._run, wake=lambda: self._queue.put(None))
        self._worker.start()
        self.registration = watcher.watch(name, self._queue, self._queue, *prefixes)

    @property
    def changes(self) -> list[Any]:
        """Every change so far."""
        return [change for event in self.events if not isinstance(event, ResyncEvent) for change in event.get_changes()]

    @property
    def resyncs(self) -> list[Any]:
        return [event for event in self.events if isinstance(event, ResyncEvent)]

    def close(self) -> None:
        self.registration.close()
        assert self._worker.close()

    def __enter__(self) -> Subscriber:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, worker: Worker) -> None:
        while (event := self._queue.get()) is not None:
            keys = [change.get_key() for change in event.get_changes()] if hasattr(event, "get_changes") else []
            self.events.append(event)
            if self._willing:
                event.done()
            elif any("refuse" in key for key in keys):
                event.done(ValueError("not with me"))
            elif not any("silent" in key for key in keys):
                event.done()


class Http:
    """A plain HTTP client of one server."""

    def __init__(self, url: str, **options: Any) -> None:
        self._url = url
        self._pool = urllib3.PoolManager(retries=False, timeout=10, **options)

    def __call__(
        self, method: str, path: str, body: bytes | str | None = None, headers: dict[str, str] | None = None
    ) -> urllib3.BaseHTTPResponse:
        return self._pool.request(method, self._url + path, body=body, headers=headers or {})

    def put(self, key: str, value: Any, **headers: str) -> urllib3.BaseHTTPResponse:
        extra = {name.replace("_", "-"): text for name, text in headers.items()}
        return self("PUT", f"/keys/{key}", json.dumps(value), {**JSON, **extra})

    def code(self, answer: urllib3.BaseHTTPResponse) -> str:
        """The code of a problem document."""
        assert answer.headers["Content-Type"] == "application/problem+json"
        document = answer.json()
        assert document["status"] == answer.status
        kind: str = document["type"].removeprefix("urn:datasync:")
        return kind

    def close(self) -> None:
        self._pool.clear()


@contextmanager
def raw(server: Server, text: bytes = b"") -> Iterator[socket.socket]:
    """Open a plain connection, and send *text* on it."""
    with socket.create_connection(("127.0.0.1", server.port), 10) as connection:
        connection.sendall(text)
        yield connection


def everything(connection: socket.socket) -> bytes:
    """Return the bytes that arrive until the server closes the connection."""
    text = b""
    try:
        while piece := connection.recv(65536):
            text += piece
    except ConnectionResetError:
        pass
    return text


def events_of(text: str) -> list[tuple[str, Any, str]]:
    """(name, document, id) of each server-sent event in *text*."""
    found = []
    for block in text.split("\n\n"):
        fields: dict[str, str] = {}
        for line in block.split("\n"):
            name, _, value = line.partition(": ")
            fields[name] = f"{fields[name]}\n{value}" if name in fields else value
        if "event" in fields:
            found.append((fields["event"], json.loads(fields["data"]), fields.get("id", "")))
    return found
