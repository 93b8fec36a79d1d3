"""REST: bare bytes at the server's door, requests to the application, and answers and events to the client."""

from __future__ import annotations

import io
import json
import logging
import re
import socket
from queue import Queue
from typing import Any
from unittest import mock
from urllib.parse import unquote_to_bytes

import urllib3
from google.protobuf.wrappers_pb2 import StringValue

from datasync.errors import DatasyncError
from datasync.restsync import Adapter, Client, wsgi_app
from datasync.restsync.client.event_source import EventParser, StreamReader
from datasync.restsync.httpd.connection import ConnectionLimits, HttpConnection
from datasync.runtime.threads import Worker
from datasync.syncbase.change import ChangeBytes
from datasync.syncbase.registry import Registry
from tests.security.fuzz.supply import Supply
from tests.security.fuzz.target import SECRET, Finding, Target, only, refuse_secrets

TOKEN = f"{SECRET}-token"
#: What a server may answer to nonsense. 500 is not in it: that is a bug of ours.
STATUSES = {200, 201, 204, 304, 308, 400, 401, 404, 405, 408, 411, 412, 413, 414, 415, 422, 431, 503, 504, 505}
WRITES = frozenset({200, 201})


class _Accepting:
    """Answers every event of an adapter at once, and counts them."""

    def __init__(self, watcher: Any) -> None:
        self._queue: Queue[Any] = Queue()
        self._worker = Worker("test-accepting", self._run, wake=lambda: self._queue.put(None))
        self._worker.start()
        self._registration = watcher.watch("agent", self._queue, self._queue, "")

    def close(self) -> None:
        self._registration.close()
        self._worker.close()

    def _run(self, worker: Worker) -> None:
        while (event := self._queue.get()) is not None:
            event.done()


BODIES = (
    f'"{SECRET}"'.encode(),
    f'{{"value":"{SECRET}","list":[1,2.5e3,null,true,{{}}]}}'.encode(),
    f'{{"items":[{{"key":"a/b","value":{{"x":"{SECRET}"}}}},{{"key":"c","data":"AAEC"}}]}}'.encode(),
    f'{{"changes":[{{"op":"Put","key":"a","value":"{SECRET}"}},{{"op":"Delete","key":"c"}}]}}'.encode(),
    b'{"items":[{"key":"k","data":"AAEC","content_type":"application/x-protobuf","revision":7}]}',
    b"\x0a\x03abc",
    b"",
)
PATHS = (
    b"/keys/net/eth0",
    b"/keys/a%2Fb%20c",
    b"/keys",
    b"/keys?prefix=net/&after=a&limit=10&values=false",
    b"/events?prefix=a&prefix=b&follow=false&heartbeat=0.1",
    b"/events?follow=true",
    b"/status?prefix=a&limit=5",
    b"/openapi.json",
    b"/",
    b"http://host/keys/k",
    b"*",
)
HEADERS = (
    b"Host: localhost",
    f"Authorization: Bearer {TOKEN}".encode(),
    b"Content-Type: application/json; charset=utf-8",
    b"Content-Type: application/x-protobuf",
    b'If-Match: "0a1b2c3d-7"',
    b"If-None-Match: *",
    b"Last-Event-ID: 0a1b2c3d-3",
    b"Content-Encoding: gzip",
    b"Transfer-Encoding: chunked",
    b"Expect: 100-continue",
    b"Connection: close",
    b"Content-Length: 5",
)
METHODS = (b"GET", b"PUT", b"DELETE", b"PATCH", b"HEAD", b"OPTIONS", b"POST", b"BREW")


class _Serving(Target):
    """What the two targets of the server share: an application, and what must be true after every request."""

    def open(self) -> None:
        logging.getLogger("datasync.restsync").addHandler(_LISTENER)
        self.adapter = Adapter()
        self._subscriber = _Accepting(self.adapter)
        self.application = wsgi_app(self.adapter, token=TOKEN, max_body=4096, max_resync=8192, show_values=False)
        self.adapter.registry.propagate_changes({"net/eth0": ChangeBytes("net/eth0", f'"{SECRET}"'.encode())})

    def close(self) -> None:
        self._subscriber.close()
        self.adapter.close()
        logging.getLogger("datasync.restsync").removeHandler(_LISTENER)

    def judge(self, statuses: list[int], before: int, told: str) -> None:
        """*statuses* were answered; *told* is what must not quote a value."""
        if set(statuses) - STATUSES:
            raise Finding(f"answered with {statuses}: {told[-300:]}")
        after = self.adapter.registry.revision
        if after < before or (after > before and not WRITES & set(statuses)):
            raise Finding(f"the state went from {before} to {after} with {statuses}")
        refuse_secrets(told, TOKEN)
        if after > 200:  # what mutated keys leave behind shall not slow down the rest
            self.adapter.registry.propagate_resync({})


class _Listener(logging.Handler):
    """The log is an output as well."""

    def emit(self, record: logging.LogRecord) -> None:
        refuse_secrets(record.getMessage())
        if record.levelno >= logging.ERROR:
            raise Finding(f"an error in the log: {record.getMessage()}")

    def handleError(self, record: logging.LogRecord) -> None:
        raise


_LISTENER = _Listener(logging.DEBUG)


class RestApplication(_Serving):
    """Requests as a WSGI server hands them over."""

    name = "rest-app"
    about = "paths, queries, headers and bodies at the WSGI application"

    def run(self, data: bytes) -> None:
        supply = Supply(data)
        target = supply.mutated(PATHS, edits=4)
        path, _, query = target.partition(b"?")
        body = supply.mutated(BODIES)
        environ: dict[str, Any] = {
            "REQUEST_METHOD": supply.one_of(METHODS[:4]).decode("latin-1"),
            "SCRIPT_NAME": "",
            "PATH_INFO": unquote_to_bytes(path).decode("latin-1"),
            "QUERY_STRING": query.decode("latin-1"),
            "SERVER_NAME": "h",
            "SERVER_PORT": "80",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "CONTENT_TYPE": supply.one_of(("application/json", "application/x-protobuf", "text/plain")),
            "CONTENT_LENGTH": str(len(body)) if not supply.chance(8) else supply.text(["12", "-1", ""]),
            "HTTP_AUTHORIZATION": f"Bearer {TOKEN}",
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(body),
            "wsgi.errors": io.StringIO(),
            "datasync.peer_gone": lambda: True,
        }
        for _ in range(supply.number(3)):
            name, _, value = supply.mutated(HEADERS, edits=3).decode("latin-1").partition(":")
            field = name.upper().replace("-", "_")
            environ[field if field.startswith("CONTENT") else f"HTTP_{field}"] = value.strip()
        before = self.adapter.registry.revision
        said: list[str] = []
        pieces = self.application(environ, lambda status, headers, error=None: said.append(f"{status} {headers}"))
        try:
            answer = b"".join(pieces)
        finally:
            getattr(pieces, "close", lambda: None)()
        status = int(said[0][:3])
        self.judge([status], before, said[0])
        if status >= 400:
            refuse_secrets(answer.decode("utf-8", "replace"))
            json.loads(answer)


class RestServer(_Serving):
    """Bare bytes on a connection."""

    name = "rest-http"
    about = "bytes at the HTTP server, request after request"
    examples = 120

    def open(self) -> None:
        super().open()
        self.limits = ConnectionLimits(10, 0.3, 0.3, 2.0, 0.3)
        self.context = None
        self.address = "127.0.0.1:1"
        self._door = socket.create_server(("127.0.0.1", 0))

    def close(self) -> None:
        self._door.close()
        super().close()

    def forget(self, connection: HttpConnection) -> None:
        pass

    def run(self, data: bytes) -> None:
        supply = Supply(data)
        raw = b"".join(self._request(supply) for _ in range(1 + supply.number(3)))
        before = self.adapter.registry.revision
        with socket.create_connection(self._door.getsockname()) as peer:
            accepted, where = self._door.accept()
            peer.sendall(raw)
            peer.shutdown(socket.SHUT_WR)
            peer.settimeout(5)
            reader = Worker("test-peer", lambda _: _drain(peer, answers))
            answers = bytearray()
            reader.start()
            try:
                HttpConnection(self, accepted, where).run(reader)
            finally:
                reader.close()
        heads = re.findall(rb"HTTP/1\.1 \d{3} [^\r]*(?:\r\n[^\r]+)*", bytes(answers))
        if answers and not bytes(answers).startswith(b"HTTP/1.1 "):
            raise Finding(f"that is no answer: {bytes(answers)[:80]!r}")
        statuses = [int(head[9:12]) for head in heads if head[9:12] != b"100"]
        self.judge(statuses, before, b"\n".join(heads).decode("latin-1"))

    def _request(self, supply: Supply) -> bytes:
        body = supply.mutated(BODIES)
        lines = [
            b" ".join((supply.mutated(METHODS, 2), supply.mutated(PATHS, 4), b"HTTP/1.1")),
            b"Host: localhost",
            b"Authorization: Bearer " + TOKEN.encode(),
            b"Content-Type: application/json",
        ]
        if supply.chance(3):
            lines.append(b"Transfer-Encoding: chunked")
            body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        else:
            lines.append(b"Content-Length: %d" % len(body))
        lines += [supply.mutated(HEADERS, 3) for _ in range(supply.number(3))]
        whole = b"\r\n".join(lines) + b"\r\n\r\n" + body
        return supply.mutated([whole], edits=4) if supply.chance(2) else whole


def _drain(peer: socket.socket, into: bytearray) -> None:
    try:
        while piece := peer.recv(65536):
            into += piece
    except OSError:
        pass


STREAMS = (
    b": datasync\nretry: 1000\n\n"
    b'event: resync\ndata: {"revision":2,"reason":"initial"}\n\n'
    b'event: items\ndata: [{"key":"a","revision":1,"content_type":"application/json","value":{"x":1}},'
    b'{"key":"b","revision":2,"content_type":"application/x-protobuf","data":"AAEC"}]\n\n'
    b'id: 0a1b2c3d-2\nevent: synced\ndata: {"revision":2,"keys":2}\n\n'
    b'id: 0a1b2c3d-3\nevent: change\ndata: {"revision":3,"changes":[{"op":"Put","key":"a","revision":3,'
    b'"content_type":"application/json","value":"'
    + SECRET.encode()
    + b'"},{"op":"Delete","key":"b","revision":3}]}\n\n'
    b"id: 0a1b2c3d-4\n: heartbeat\n\n",
    (
        b'id: 0a1b2c3d-5\nevent: change\ndata: {"revision":5,"changes":[{"op":"Put","key":"n","revision":5,'
        b'"content_type":"application/json","value":[1,2]},{"op":"Put","key":"m","revision":5,'
        b'"content_type":"application/json","value":7}]}\n\n'
    ),
    b"id: 0a1b2c3d-9\n: heartbeat\n\n",
    (
        b'event: resync\r\ndata: {"revision":9,"reason":"overflow"}\r\n\r\n'
        b'event: synced\r\ndata: {"revision":9,"keys":0}\r\n\r\n'
    ),
)
GOOD = STREAMS[0]


class Events(Target):
    """The event stream as the client reads it: an event counts whole or not at all, and the reader goes on."""

    name = "events"
    about = "the event stream, at the client"

    def open(self) -> None:
        self._place = mock.Mock(scheme="http", host="h", port=1, path="", name="http://h:1")

    def run(self, data: bytes) -> None:
        supply = Supply(data)
        registry = Registry("mirror", sourced=True)
        try:
            reader = StreamReader(self._place, mock.Mock(), {}, "", registry, idle_limit=1.0)
            queue: Queue[Any] = Queue()
            registry.watch("w", queue, queue, "")
            stream = GOOD if supply.chance(2) else b""
            stream += supply.mutated(STREAMS, edits=8)
            self._follow(reader, registry, stream, supply)
            # Whatever that was: the next connection brings the reader back into step.
            reader._snapshot = None
            parser = EventParser()
            for event in parser.feed(GOOD):
                reader._take(event)
            if {pair.key for pair in registry.items()} != {"a"} or registry.get("a").revision != 3:  # type: ignore[union-attr]
                raise Finding("a good stream after a bad one is not followed")
        finally:
            registry.close()

    def _follow(self, reader: StreamReader, registry: Registry, stream: bytes, supply: Supply) -> None:
        parser = EventParser()
        cut = 1 + supply.number(len(stream) + 1)
        for piece in (stream[:cut], stream[cut:]):
            events = parser.feed(piece)
            while True:
                before = _facts(registry)
                # Any exception is the reader's to catch: it says that an event cannot be read, and starts over.
                try:
                    event = next(events, None)
                    if event is None:
                        break
                    reader._take(event)
                except Exception as error:
                    if _facts(registry) != before:
                        raise Finding(f"half of an event was applied before {type(error).__name__}") from error
                    return
                _check(registry)


def _facts(registry: Registry) -> tuple[int, dict[str, tuple[int, object]]]:
    return registry.revision, {pair.key: (pair.revision, pair.value) for pair in registry.items()}


def _check(registry: Registry) -> None:
    """What is in the mirror has the types that everybody counts on."""
    revision, pairs = _facts(registry)
    if type(revision) is not int:
        raise Finding(f"the revision is a {type(revision).__name__}")
    for key, (at, _) in pairs.items():
        if type(key) is not str or not key or type(at) is not int:
            raise Finding(f"a pair with a key {type(key).__name__} at a revision {type(at).__name__}")


ANSWERS = (
    b'{"key":"a","revision":7}',
    b'{"revision":7,"ignored":["a"]}',
    b'{"type":"urn:datasync:refused","title":"t","status":422,"detail":"d","errors":{"agent":"no"}}',
    b'{"type":"urn:datasync:unanswered","silent":["a"],"status":504}',
    b'{"type":"urn:datasync:no-such-key","status":404,"detail":"there is no"}',
    b'{"type":"urn:datasync:closed","status":503}',
    GOOD,
)
ANSWER_HEADERS = (
    b"Content-Type: application/problem+json",
    b"Content-Type: application/json",
    b"Content-Type: text/event-stream",
    b'ETag: "0a1b2c3d-7"',
    b'ETag: W/"x-9"',
    b"Location: http://elsewhere/",
    b"Content-Encoding: identity",
)


class RestAnswers(Target):
    """What a server that may be anybody answers to the client."""

    name = "rest-answers"
    about = "answers of any server to the REST client"

    def open(self) -> None:
        self._client = Client("http://127.0.0.1:1", token=TOKEN)

    def close(self) -> None:
        self._client.close()

    def run(self, data: bytes) -> None:
        supply = Supply(data)
        status = supply.one_of((200, 200, 201, 204, 302, 400, 401, 404, 412, 413, 422, 500, 503, 504, 599, 999))
        headers = []
        for _ in range(supply.number(4)):
            name, _, value = supply.mutated(ANSWER_HEADERS, 3).decode("latin-1").partition(":")
            headers.append((name, value.strip()))
        call = supply.number(6)
        answer = urllib3.HTTPResponse(
            io.BytesIO(supply.mutated(ANSWERS, 8)),
            headers=urllib3.HTTPHeaderDict(headers),
            status=status,
            preload_content=False,
        )
        message = StringValue(value=SECRET)
        client = self._client
        with mock.patch.object(client._requests._pool, "urlopen", return_value=answer), only():
            if call == 0:
                client.put("a", message)
            elif call == 1:
                client.delete("a")
            elif call == 2:
                client.resync({"a": message})
            elif call == 3:
                client.propagate_changes({"a": ChangeBytes("a", b'"x"')})
            elif call == 4:
                found = client.get("a")
                refuse_secrets(repr(found))
            else:
                listing = client.list()
                if type(listing.revision) is not int:
                    raise Finding("a revision that is no number")
                for pair in listing:
                    if type(pair.get_key()) is not str or type(pair.get_revision()) is not int:
                        raise Finding("a pair of other types")


__all__ = ["DatasyncError", "Events", "RestAnswers", "RestApplication", "RestServer"]
