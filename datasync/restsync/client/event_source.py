"""Follows a server's event stream and keeps a registry in step with it.

Source: contract section 5, C3, C13; the same recovery as ``keyval.reader``, over another kind of source.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from typing import Any, NamedTuple, cast
from urllib.parse import quote

from datasync.commits import Batch
from datasync.errors import ClosedError, DatasyncError, ForkedError, StoreConnectionError, StoreError
from datasync.events import Op, ResyncReason
from datasync.restsync.answers import error_of
from datasync.restsync.app.event_stream import CONTENT_EVENTS
from datasync.restsync.client.connection import ClientTls, Place, StreamLink, make_context
from datasync.restsync.encoding import CONTENT_JSON, SERIALIZERS, value_of_item
from datasync.runtime.backoff import AFTER_BREAK, Backoff
from datasync.runtime.threads import Worker
from datasync.syncbase.change import KeyValBytes, Payload
from datasync.syncbase.registry import Registry

log = logging.getLogger(__name__)

#: Seconds between attempts: the first pause, and the longest.
BACKOFF = (0.1, 30.0)
#: Bytes of one event: a transaction, or a piece of a snapshot.
MAX_EVENT = 256 * 1024 * 1024
#: Bytes of a problem document that are read.
MAX_PROBLEM = 64 * 1024


_IDENTITY = re.compile(r"[0-9A-Za-z]{1,64}-([0-9]{1,19})")


class Event(NamedTuple):
    """One server-sent event; *data* is empty for a heartbeat."""

    name: str
    data: str
    identity: str

    def __repr__(self) -> str:
        return f"<event {self.name!r}, {len(self.data)} characters>"


class _Commit(NamedTuple):
    revision: int
    ops: list[tuple[str, Payload | None]]

    def __repr__(self) -> str:
        return f"<commit {self.revision} of {len(self.ops)} key(s)>"


class _Batch(NamedTuple):
    revision: int
    commits: list[_Commit]


class EventParser:
    """Bytes in, events out, however they are cut. Lines end with LF, as our server sends them, or CRLF."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._searched = 0

    def feed(self, data: bytes) -> Iterator[Event]:
        """The events that *data* completes."""
        self._rest += data.replace(b"\r", b"")  # our JSON has none of its own: it can only be the proxy's line end
        while (end := self._rest.find(b"\n\n", self._searched)) >= 0:
            block = bytes(self._rest[:end]).decode()
            del self._rest[: end + 2]
            self._searched = 0
            yield _event(block)
        self._searched = max(0, len(self._rest) - 1)
        if len(self._rest) > MAX_EVENT:
            raise StoreError(f"an event has more than {MAX_EVENT} bytes")


def _event(block: str) -> Event:
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
    return Event(name, "\n".join(lines), identity)


class StreamReader:
    """One thread that follows the prefix of one server.

    Threads: ``start`` and ``close`` from any; the registry is fed from the reader's own.
    """

    def __init__(
        self,
        place: Place,
        tls: ClientTls | None,
        headers: dict[str, str],
        prefix: str,
        registry: Registry,
        *,
        connect_timeout: float,
        idle_limit: float,
    ) -> None:
        self._place = place
        self._context = make_context(tls, place.scheme)
        self._headers = headers
        self._prefix = prefix
        self._registry = registry
        self._connect_timeout = connect_timeout
        self._idle_limit = idle_limit
        heartbeat = min(max(idle_limit / 3, 0.1), 60.0)
        self._target = f"{place.path}/events?prefix={quote(prefix, safe='')}&heartbeat={heartbeat:g}"
        self._last_id = ""
        self._backoff = Backoff(*BACKOFF, after_break=AFTER_BREAK)
        self._link: StreamLink | None = None
        self._snapshot: dict[str, tuple[int, Payload]] | None = None
        self._reason = ResyncReason.INITIAL
        self._seen = False
        self._worker = Worker(f"restsync-reader-{place.host}:{place.port}", self._run, wake=self._cut)

    def start(self) -> None:
        """Begin to follow."""
        self._worker.start()

    def close(self) -> bool:
        """Stop and wait for the thread."""
        return self._worker.close()

    def _cut(self) -> None:
        link = self._link
        if link is not None:
            link.cut()

    def _run(self, worker: Worker) -> None:
        while not worker.stopping.is_set():
            try:
                self._follow(worker)
            except (ClosedError, ForkedError):
                if worker.stopping.is_set():
                    return
            except DatasyncError as error:
                if not worker.stopping.is_set():
                    log.warning("%s; trying again", error)
                    self._registry.source_lost(error)
            except Exception as error:  # a server that is none of ours; the text may quote a value
                log.error("%s: an event cannot be read: %s; starting over", self._place.name, type(error).__name__)
                self._last_id = ""
                self._registry.source_lost(StoreError(f"{self._place.name}: an event cannot be read"))
            worker.stopping.wait(self._backoff.next())

    def _follow(self, worker: Worker) -> None:
        """One connection, from its begin to its end."""
        link = StreamLink(self._place, self._context, self._connect_timeout, self._idle_limit)
        self._link = link
        self._snapshot = None
        try:
            if worker.stopping.is_set():  # close() came between, and found the link before
                return
            headers = {**self._headers, "Accept": CONTENT_EVENTS, "Accept-Encoding": "identity"}
            if self._last_id:
                headers["Last-Event-ID"] = self._last_id
            response = link.open(self._target, headers)
            content_type = response.headers.get("Content-Type", "")
            if response.status != 200 or not content_type.startswith(CONTENT_EVENTS):
                body = link.read_rest(MAX_PROBLEM)
                raise error_of(f"{self._place.name}/events", response.status, content_type, body, write=False)
            parser = EventParser()
            while data := link.read():
                for event in parser.feed(data):
                    self._take(event)
                if worker.stopping.is_set():
                    return
            raise StoreConnectionError(f"{self._place.name}: the server ended the event stream")
        finally:
            link.close()

    def _take(self, event: Event) -> None:
        """Apply *event*, all of it or, when it raises, nothing."""
        revision = _revision_of(event.identity) if event.identity else 0
        if event.name == "change":
            self._changes(json.loads(event.data))
            self._backoff.reset()
        elif event.name == "resync":
            self._snapshot = {}
            reason = ResyncReason(json.loads(event.data)["reason"])
            self._reason = reason if self._seen else ResyncReason.INITIAL
        elif event.name == "items":
            if self._snapshot is None:
                raise ValueError("a part of no snapshot")
            for item in json.loads(event.data):
                key, at = place_of(item, self._prefix)
                self._snapshot[key] = (at, payload_of(item))
        elif event.name == "synced":
            complete = whole(json.loads(event.data)["revision"])
            if self._snapshot is None:
                raise ValueError("the end of no snapshot")
            entries, self._snapshot = self._snapshot, None
            # The registry keeps whatever reads itself, beside bytes: values come in two forms.
            self._registry.feed_snapshot(complete, cast("Any", entries), self._reason)
            self._seen = True
            self._backoff.reset()
        elif event.identity and self._snapshot is None:
            self._registry.feed_changes(cast("Batch", _Batch(revision, [])))  # nothing of ours up to there
            self._backoff.reset()
        if event.identity:
            self._last_id = event.identity

    def _changes(self, document: dict[str, Any]) -> None:
        ops: dict[str, Payload | None] = {}
        for change in document["changes"]:
            key, _ = place_of(change, self._prefix)
            if key in ops:
                raise ValueError("a key stands twice in a transaction")
            ops[key] = None if Op(change["op"]) is Op.DELETE else payload_of(change)
        revision = whole(document["revision"])
        batch = _Batch(revision, [_Commit(revision, list(ops.items()))])
        self._registry.feed_changes(cast("Batch", batch))


def place_of(item: dict[str, Any], prefix: str) -> tuple[str, int]:
    """The key of an item, without *prefix*, and its revision. Raises ``ValueError``, or what comes of no item."""
    key = item["key"]
    if not isinstance(key, str) or not key or not key.startswith(prefix):
        raise ValueError("a key that was not asked for")
    return key[len(prefix) :], whole(item["revision"])


def whole(number: object) -> int:
    """*number*, which is a revision. Raises ``ValueError`` unless it can be one."""
    if type(number) is not int or not 0 <= number < 2**63:
        raise ValueError("no revision")
    return number


def _revision_of(identity: str) -> int:
    """What an id names. It goes into a header when the stream is resumed."""
    match = _IDENTITY.fullmatch(identity)
    if match is None:
        raise ValueError("no id of an event")
    return whole(int(match[1]))


def payload_of(item: dict[str, Any]) -> Payload:
    """The value in an item of the stream, as the registry keeps it."""
    content_type = item["content_type"]
    data = value_of_item(item, content_type)
    if content_type == CONTENT_JSON:
        return data
    return KeyValBytes(item["key"], data, item["revision"], SERIALIZERS.get(content_type))
