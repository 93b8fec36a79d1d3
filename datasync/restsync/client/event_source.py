"""The event stream of a server as the source of a registry.

It recovers in the same way as ``keyval.reader`` does from a store. Source: contract C3, C13.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, cast
from urllib.parse import quote

from datasync.commits import Batch, Commit
from datasync.errors import ClosedError, DatasyncError, ForkedError, StoreConnectionError, StoreError
from datasync.events import Op, ResyncReason
from datasync.restsync.encoding import CONTENT_EVENTS, CONTENT_JSON, SERIALIZERS, value_of_item
from datasync.restsync.keys import PREFIX_HEADER, escape
from datasync.restsync.problems import error_of
from datasync.runtime.backoff import AFTER_BREAK, Backoff
from datasync.runtime.http_client.connections import StreamConnection
from datasync.runtime.http_client.timed_connection import ServerAddress
from datasync.runtime.logs import get_logger
from datasync.runtime.threads import Worker
from datasync.syncbase.change import KeyValBytes, Payload
from datasync.syncbase.registry import Registry

log = get_logger(__name__)

#: Backoff between attempts in seconds: the first, and the longest.
BACKOFF = (0.1, 30.0)
#: Bytes of one event: a transaction, or a part of a snapshot.
MAX_EVENT = 256 * 1024 * 1024
#: Bytes of a problem document that are read.
MAX_PROBLEM = 64 * 1024

_IDENTITY = re.compile(r"[0-9A-Za-z]{1,64}-([0-9]{1,19})")


class StreamEvent(NamedTuple):
    """One server-sent event; *data* is empty for a heartbeat."""

    name: str
    data: str
    identity: str

    def __repr__(self) -> str:
        return f"<event {self.name!r}, {len(self.data)} characters>"


class EventParser:
    """Turns the bytes of a stream into events. Lines end with LF, as from our server, or with CRLF."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._searched = 0

    def feed(self, data: bytes) -> Iterator[StreamEvent]:
        """Yield the events that *data* completes."""
        self._rest += data.replace(b"\r", b"")  # JSON escapes its own: an unescaped CR is the line end of a proxy
        while (end := self._rest.find(b"\n\n", self._searched)) >= 0:
            block = bytes(self._rest[:end]).decode()
            del self._rest[: end + 2]
            self._searched = 0
            yield _event(block)
        self._searched = max(0, len(self._rest) - 1)
        if len(self._rest) > MAX_EVENT:
            raise StoreError(f"the event stream has an event of more than {MAX_EVENT} bytes")


def _event(block: str) -> StreamEvent:
    name, identity, lines = "", "", []
    for line in block.split("\n"):
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            lines.append(value)
        elif field == "event":
            name = value
        elif field == "id":
            identity = value
    return StreamEvent(name, "\n".join(lines), identity)


class StreamReader:
    """One thread that follows the keys under one prefix of one server, and feeds a registry.

    Threads: ``start`` and ``close`` from any; the reader's own thread feeds the registry.
    """

    def __init__(
        self,
        address: ServerAddress,
        connect: Callable[[], StreamConnection],
        headers: dict[str, str],
        prefix: str,
        registry: Registry,
        idle_limit: float,
        max_snapshot: int = MAX_EVENT,
    ) -> None:
        self._address = address
        self._connect = connect
        self._headers = headers
        self._prefix = prefix
        self._registry = registry
        self._max_snapshot = max_snapshot
        heartbeat = min(max(idle_limit / 3, 0.1), 60.0)
        self._target = f"{address.path}/events?prefix={quote(prefix, safe='')}&heartbeat={heartbeat:g}"
        self._last_id = ""
        self._backoff = Backoff(*BACKOFF, after_break=AFTER_BREAK)
        self._connection: StreamConnection | None = None
        self._snapshot: dict[str, tuple[int, Payload]] | None = None
        self._snapshot_size = 0
        self._reason = ResyncReason.INITIAL
        self._had_snapshot = False
        self._worker = Worker(f"restsync-reader-{address.host}:{address.port}", self._run, wake=self._cut)

    def start(self) -> None:
        """Start the thread."""
        self._worker.start()

    def close(self) -> bool:
        """Stop the thread and wait for it. Returns False when it has not ended in time."""
        return self._worker.close()

    def _cut(self) -> None:
        connection = self._connection
        if connection is not None:
            connection.cut()

    def _run(self, worker: Worker) -> None:
        while not worker.stopping.is_set():
            self._attempt(worker)
            worker.stopping.wait(self._backoff.next())

    def _attempt(self, worker: Worker) -> None:
        """Follow one connection, and note how it ended."""
        try:
            self._follow(worker)
        except (ClosedError, ForkedError):
            pass
        except DatasyncError as error:
            if not worker.stopping.is_set():
                self._registry.source_lost(error)
                log.warning("%s; reconnecting", error)
        except Exception as error:  # from another kind of server; the text may quote a value
            self._last_id = ""
            self._registry.source_lost(StoreError(f"{self._address.name} sent an invalid event"))
            text = "%s sent an invalid event: %s; starting over"
            log.error(text, self._address.name, type(error).__name__)

    def _follow(self, worker: Worker) -> None:
        """Follow one connection from its start to its end."""
        self._connection = connection = self._connect()
        self._snapshot = None
        try:
            if worker.stopping.is_set():  # close() came between, and cut the previous connection
                return
            headers = {**self._headers, "Accept": CONTENT_EVENTS, "Accept-Encoding": "identity"}
            if self._last_id:
                headers["Last-Event-ID"] = self._last_id
            response = connection.open(self._target, headers)
            content_type = response.headers.get("Content-Type", "")
            if response.status != 200 or not content_type.startswith(CONTENT_EVENTS):
                body = connection.read_rest(MAX_PROBLEM)
                raise error_of(f"{self._address.name}/events", response.status, content_type, body, write=False)
            check_prefix(response.headers, self._prefix)
            parser = EventParser()
            while data := connection.read():
                for event in parser.feed(data):
                    self._take(event)
                if worker.stopping.is_set():
                    return
            raise StoreConnectionError(f"{self._address.name}: the server ended the event stream")
        finally:
            connection.close()

    def _take(self, event: StreamEvent) -> None:
        """Apply the whole of *event*, or raise and apply nothing."""
        revision = _revision_of(event.identity) if event.identity else 0
        if event.name == "change":
            self._apply_changes(json.loads(event.data))
            self._backoff.reset()
        elif event.name == "resync":
            self._snapshot, self._snapshot_size = {}, 0
            reason = ResyncReason(json.loads(event.data)["reason"])
            self._reason = reason if self._had_snapshot else ResyncReason.INITIAL
        elif event.name == "items":
            if self._snapshot is None:
                raise ValueError("items outside a snapshot")
            self._snapshot_size += len(event.data)
            if self._snapshot_size > self._max_snapshot:
                self._snapshot = None
                text = f"{self._address.name} sent a snapshot of more than {self._max_snapshot} bytes (max_answer)"
                raise StoreError(text)
            for item in json.loads(event.data):
                key, at = key_and_revision(item, self._prefix)
                self._snapshot[key] = (at, payload_of(item))
        elif event.name == "synced":
            complete = check_revision(json.loads(event.data)["revision"])
            if self._snapshot is None:
                raise ValueError("the end of a snapshot without its start")
            entries, self._snapshot = self._snapshot, None
            # The registry takes payloads as well as bytes: values arrive in two forms.
            self._registry.feed_snapshot(complete, cast("Any", entries), self._reason)
            self._had_snapshot = True
            self._backoff.reset()
        elif event.identity and self._snapshot is None:
            self._registry.feed_changes(Batch(revision, []))  # no change under the prefix up to this revision
            self._backoff.reset()
        if event.identity:
            self._last_id = event.identity

    def _apply_changes(self, document: dict[str, Any]) -> None:
        ops: dict[str, Payload | None] = {}
        for change in document["changes"]:
            key, _ = key_and_revision(change, self._prefix)
            if key in ops:
                raise ValueError("a transaction repeats a key")
            ops[key] = None if Op(change["op"]) is Op.DELETE else payload_of(change)
        revision = check_revision(document["revision"])
        self._registry.feed_changes(Batch(revision, [Commit(revision, cast("Any", list(ops.items())))]))


def key_and_revision(item: dict[str, Any], prefix: str) -> tuple[str, int]:
    """Return the key of an item, without *prefix*, and its revision. Raises ``ValueError`` or the like."""
    key = item["key"]
    if not isinstance(key, str) or not key or not key.startswith(prefix):
        raise ValueError("a key outside the prefix")
    return key[len(prefix) :], check_revision(item["revision"])


def check_prefix(headers: Mapping[str, str], prefix: str) -> None:
    """Raise ``ValueError`` if a stream says that it has other keys than those under *prefix*."""
    named = escape(prefix)
    if headers.get(PREFIX_HEADER, named) != named:  # a peer without this extension does not say
        raise ValueError("a stream of other prefixes: something between client and server rewrites the query")


def check_revision(number: object) -> int:
    """Return *number*. Raises ``ValueError`` unless it is a valid revision."""
    if type(number) is not int or not 0 <= number < 2**63:
        raise ValueError("not a valid revision")
    return number


def _revision_of(identity: str) -> int:
    """Return the revision in an event id. It is checked strictly, because the id is sent as a header later."""
    match = _IDENTITY.fullmatch(identity)
    if match is None:
        raise ValueError("not a valid event id")
    return check_revision(int(match[1]))


def payload_of(item: dict[str, Any]) -> Payload:
    """Return the value of an item in the form that the registry keeps."""
    content_type = item["content_type"]
    data = value_of_item(item, content_type)
    if content_type == CONTENT_JSON:
        return data
    return KeyValBytes(item["key"], data, item["revision"], SERIALIZERS.get(content_type))
