"""A REST server as a store: every tool that works on stores works on it, within what its API offers.

It has no history, leases or lifetimes, and takes conditions on the one key that is written. JSON values are sent as
such, all others as bytes. Every way to read a value gives the bytes that were written.

Source: contract C13, C16-C18, C23.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, ClassVar
from urllib.parse import quote

from datasync.commits import Batch, Commit
from datasync.errors import (
    ClosedError,
    CompactedError,
    ConflictError,
    StoreConnectionError,
    StoreError,
    UnsupportedError,
)
from datasync.events import ChangeValue, Op
from datasync.keyval.api import Store
from datasync.keyval.driver import Scan, Stream
from datasync.keyval.types import Capability, CommitResult, Condition, DeleteOp, KeyValue, PutOp, WriteOp
from datasync.restsync.client.client import IDLE_LIMIT, Client
from datasync.restsync.client.connection import CONNECT_TIMEOUT, make_client_context
from datasync.restsync.client.event_source import EventParser, check_prefix, check_revision, key_and_revision
from datasync.restsync.client.exact import exact_value, read_changes, read_items
from datasync.restsync.client.writes import conditions
from datasync.restsync.encoding import CONTENT_EVENTS, CONTENT_JSON, ReceivedValue, parse_json
from datasync.restsync.keys import check_text
from datasync.restsync.problems import Problem, error_of
from datasync.runtime.http_client.connections import StreamConnection, time_of
from datasync.runtime.tokens import bearer
from datasync.runtime.wording import below
from datasync.syncbase.change import ChangeBytes

#: Bytes of a problem document that are read.
MAX_PROBLEM = 64 * 1024
_BYTES = "application/octet-stream"


class RestStore(Store):
    """The keys of the REST server at *url*.

    Threads: any.
    """

    capabilities: ClassVar[frozenset[Capability]] = frozenset(
        {Capability.REVISION, Capability.TXN, Capability.CAS, Capability.BRANCH, Capability.CONSISTENT_LIST}
    )
    idle_limit = IDLE_LIMIT
    resumes = True

    def __init__(self, url: str, *, token: str | None = None) -> None:
        self._client = RestBytesClient(url, token=token)
        # Which incarnation of the server the last listing was from: its revisions mean nothing to another one.
        self._incarnation = ""

    @property
    def name(self) -> str:
        return self._client.address_name

    def check(self) -> None:
        self._client.ping()

    def facts(self) -> Mapping[str, object]:
        return time_of(self._client.ping())

    def read(self, key: str) -> KeyValue | None:
        pair = self._client.get(key)
        return None if pair is None else KeyValue(key, pair.data or b"", pair.revision)

    def scan(self, prefix: str, *, keys_only: bool = False) -> Scan:
        incarnation, revision, pairs = self._client.list_bytes(prefix)
        self._incarnation = incarnation
        return RestListing(revision, pairs)

    def commit(
        self, ops: Sequence[WriteOp], conditions: Sequence[Condition] = (), otherwise: Sequence[WriteOp] = ()
    ) -> CommitResult:
        if otherwise or (conditions and (len(ops) != 1 or len(conditions) != 1 or conditions[0].key != ops[0].key)):
            raise UnsupportedError(f"{self.name} takes a condition on the one key that is written, and no otherwise()")
        changes = self._changes(ops)
        if conditions:
            return self._conditional(ops[0], conditions[0])
        if len(changes) != 1:
            outcome = self._client.propagate_changes(changes) if changes else None
            deleted = sum(change.get_change_type() is Op.DELETE for change in changes.values())
            return (
                CommitResult(True, 0, 0)
                if outcome is None
                else CommitResult(True, outcome.revision, deleted - len(outcome.ignored))
            )
        key, change = next(iter(changes.items()))
        if isinstance(change, ReceivedValue):
            written = self._client.put_bytes(key, change.data or b"", change.content_type)
            return CommitResult(True, written, 0)
        result = self._client.delete(key)
        return CommitResult(True, result.revision, int(bool(result)))

    def stream(self, prefix: str, after: int) -> Stream:
        return ServerEvents(self._client, prefix, f"{self._incarnation}-{after}" if self._incarnation else "")

    def close(self) -> None:
        self.places.close()
        self._client.close()

    def _changes(self, ops: Sequence[WriteOp]) -> dict[str, ChangeValue]:
        changes: dict[str, ChangeValue] = {}
        for op in ops:
            if isinstance(op, PutOp):
                changes[op.key] = ReceivedValue(op.key, op.value, _content_type(op.value))
            else:
                keys = [pair.key for pair in self.scan(op.key)] if op.prefix else [op.key]
                changes |= {key: ChangeBytes(key, op=Op.DELETE) for key in keys}
        return changes

    def _conditional(self, op: WriteOp, condition: Condition) -> CommitResult:
        """Write *op* if *condition* holds: by the entity tag of the state that was compared."""
        pair = self._client.get(op.key)
        absent = condition.value is None and not condition.revision
        found = None if pair is None else pair.data or b""
        if not condition.holds(found, 0 if pair is None else pair.revision):
            return CommitResult(False, 0 if pair is None else pair.revision, 0)
        tag = None if pair is None else pair.etag
        try:
            if isinstance(op, DeleteOp):
                result = self._client.delete(op.key, if_match=tag)
                return CommitResult(True, result.revision, int(bool(result)))
            written = self._client.put_bytes(op.key, op.value, _content_type(op.value), if_match=tag, if_absent=absent)
            return CommitResult(True, written, 0)
        except ConflictError:
            return CommitResult(False, 0, 0)


class RestListing(Scan):
    """All pairs of a listing, which one response held."""

    def __init__(self, revision: int, pairs: list[KeyValue]) -> None:
        self.revision = revision
        self._pairs = pairs

    def __iter__(self) -> Iterator[KeyValue]:
        return iter(self._pairs)


class RestBytesClient(Client):
    """A client that reads and writes bytes instead of messages."""

    def __init__(self, url: str, *, token: str | None = None) -> None:
        super().__init__(url, token=token)
        self._stream_headers = {} if token is None else {"Authorization": bearer(token)}
        self._stream_context = make_client_context(None, self._address.scheme)

    @property
    def address_name(self) -> str:
        """The URL of the server."""
        return self._address.name

    def ping(self) -> Mapping[str, str]:
        """Return the headers of an answer, or raise what keeps the server from answering."""
        subject = "check of the server"
        response = self._requests.send("GET", "/keys?limit=1&values=false", subject)
        if response.status != 200:
            raise self._requests.error(subject, response)
        return response.headers

    def put_bytes(
        self, key: str, data: bytes, content_type: str, *, if_match: str | None = None, if_absent: bool = False
    ) -> int:
        """Set *key*, and return the revision. Raises as ``put``."""
        self._check(key, None)
        headers = {"Content-Type": content_type, **conditions(if_match, if_absent)}
        return self._write_key("PUT", key, f"put of {key!r}", headers, data, None).revision

    def list_bytes(self, prefix: str) -> tuple[str, int, list[KeyValue]]:
        """Return the incarnation of the server, the revision, and the pairs under *prefix* in key order."""
        self._check(None, None)
        check_text(prefix, "a prefix")
        subject = f"list of {below(prefix)}"
        response = self._requests.send("GET", f"/events?follow=false&prefix={quote(prefix, safe='')}", subject)
        if response.status != 200:
            raise self._requests.error(subject, response)
        failure: StoreError = StoreError(f"{subject}: the response is not from a datasync server")
        with suppress(ValueError, TypeError, KeyError, AttributeError, RecursionError):  # their text may quote a value
            check_prefix(response.headers, prefix)
            pairs: dict[str, KeyValue] = {}
            for event in EventParser().feed(response.data):
                if event.name == "items":
                    pairs |= {pair.key: pair for pair in map(_pair, read_items(event.data))}
                elif event.name == "synced":
                    incarnation, _, number = event.identity.rpartition("-")
                    return incarnation, check_revision(int(number)), [pairs[key] for key in sorted(pairs)]
            failure = StoreConnectionError(f"{self.address_name}: the {subject} ended early")
        raise failure

    def open_events(self, prefix: str, last_id: str) -> tuple[StreamConnection, str, dict[str, str]]:
        """Return a connection for an event stream, its target, and its headers."""
        connection = StreamConnection(self._address, self._stream_context, CONNECT_TIMEOUT, IDLE_LIMIT)
        target = f"{self._address.path}/events?prefix={quote(prefix, safe='')}&heartbeat={IDLE_LIMIT / 3:g}"
        headers = {**self._stream_headers, "Accept": CONTENT_EVENTS, "Accept-Encoding": "identity"}
        return connection, target, headers | ({"Last-Event-ID": last_id} if last_id else {})


class ServerEvents(Stream):
    """The event stream of a server after a revision, which ends when the server starts over."""

    def __init__(self, client: RestBytesClient, prefix: str, last_id: str) -> None:
        self._name = client.address_name
        self._prefix = prefix
        self._connection, self._target, self._headers = client.open_events(prefix, last_id)
        self._cancelled = False

    def cancel(self) -> None:
        self._cancelled = True
        self._connection.cut()

    def __iter__(self) -> Iterator[Batch | None]:
        try:
            yield from self._batches()
        except (ClosedError, StoreConnectionError):
            if not self._cancelled:
                raise
        finally:
            self._connection.close()

    def _batches(self) -> Iterator[Batch]:
        response = self._connection.open(self._target, self._headers)
        content_type = response.headers.get("Content-Type", "")
        if response.status != 200 or not content_type.startswith(CONTENT_EVENTS):
            body = self._connection.read_rest(MAX_PROBLEM)
            raise error_of(f"{self._name}/events", response.status, content_type, body, write=False)
        parser = EventParser()
        while data := self._connection.read():
            for event in parser.feed(data):
                if event.name == "resync":
                    raise CompactedError(f"{self._name} starts over: it was restarted, or has forgotten what changed")
                if not event.identity and event.name != "change":
                    continue  # the first bytes of a stream, or an event of a later version
                try:
                    batch = _batch(event.data, event.identity)
                except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                    batch = None
                if batch is None:
                    raise StoreError(f"{self._name} sent an invalid event")
                yield batch
        if not self._cancelled:
            raise StoreConnectionError(f"{self._name}: the server ended the event stream")


def _batch(data: str, identity: str) -> Batch:
    """Return what an event says; one without data is a heartbeat with the position."""
    revision = check_revision(int(identity.rpartition("-")[2]))
    if not data:
        return Batch(revision, [])
    ops: list[tuple[str, bytes | None]] = []
    for change in read_changes(data):
        key, _ = key_and_revision(change, "")
        ops.append((key, None if Op(change["op"]) is Op.DELETE else exact_value(change)))
    return Batch(revision, [Commit(revision, ops)])


def _pair(item: Mapping[str, Any]) -> KeyValue:
    key, revision = key_and_revision(dict(item), "")
    return KeyValue(key, exact_value(item), revision)


def _content_type(value: bytes) -> str:
    try:
        parse_json(value)
    except Problem:
        return _BYTES
    return CONTENT_JSON
