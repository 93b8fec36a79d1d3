"""The other side: write to a server, read from it, and watch it.

Source: contract section 5, C13, C16-C18; cn-infra has no REST client.
"""

from __future__ import annotations

import contextvars
import json
import logging
import ssl
import threading
from collections.abc import Mapping
from contextlib import closing
from queue import Queue
from typing import Any, NamedTuple
from urllib.parse import quote

import urllib3
from google.protobuf.message import Message
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError, SSLError

from datasync.errors import (
    ClosedError,
    InvalidArgumentError,
    StoreConnectionError,
    StoreError,
    UnknownOutcome,
    UnsupportedError,
)
from datasync.events import ChangeValue, Op
from datasync.options import DelOption, PutOption, read_del_options, read_put_options
from datasync.restsync.answers import code_of, error_of
from datasync.restsync.client.connection import CONNECT_TIMEOUT, ClientTls, describe, make_context, read_url
from datasync.restsync.client.event_source import EventParser, StreamReader, place_of, whole
from datasync.restsync.encoding import CONTENT_JSON, CONTENT_PROTO, PIECE, change_of, value_of_item
from datasync.restsync.keys import check_text, path_of_key
from datasync.restsync.values import Listing, RestKeyVal
from datasync.runtime.closing import Closable
from datasync.runtime.threads import ForkGuard
from datasync.runtime.tokens import bearer
from datasync.serializer import Serializer, SerializerJSON, SerializerProto, check_message
from datasync.syncbase.futures import Outcome
from datasync.syncbase.registration import Registration
from datasync.syncbase.registry import Registry
from datasync.syncbase.status import TransportStatus

log = logging.getLogger(__name__)

#: Seconds to wait for an answer: longer than the server waits for its subscribers.
ANSWER_TIMEOUT = 10.0
#: Seconds of silence after which an event stream counts as broken; the server is asked to speak three times as often.
IDLE_LIMIT = 30.0
#: Bytes of an answer.
MAX_ANSWER = 256 * 1024 * 1024
#: Connections that are kept for the next request.
POOL = 16


class Client(Closable):
    """A writer, a reader and a watcher of one REST server.

    Watching starts one thread, at the first ``watch``, which mirrors everything under *prefix*; writes need none.

    Args:
      url: Where the server is, with the path that it is mounted at.
      prefix: Plain string in front of every key; subscribers and callers see keys relative to it.
      token: Sent as ``Authorization: Bearer``.
      tls: The authority's file, or a context; for ``https://`` only.
      serializer: How messages are sent: ``SerializerJSON`` (usual) or ``SerializerProto``.
      timeout, connect_timeout: Seconds to wait for an answer, and for a connection.
      idle_limit: Seconds of silence after which an event stream counts as broken.
      max_answer: Bytes of an answer; a listing has the longest.

    Raises:
      InvalidArgumentError: An argument cannot be.

    Threads: any.
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "",
        token: str | None = None,
        tls: ClientTls | None = None,
        serializer: Serializer | None = None,
        timeout: float = ANSWER_TIMEOUT,
        connect_timeout: float = CONNECT_TIMEOUT,
        idle_limit: float = IDLE_LIMIT,
        max_answer: int = MAX_ANSWER,
    ) -> None:
        self._place = read_url(url)
        if not isinstance(prefix, str):
            raise InvalidArgumentError(f"a prefix must be a string, not {type(prefix).__name__}")
        check_text(prefix, "a prefix")
        if not isinstance(max_answer, int) or max_answer < 1:
            raise InvalidArgumentError("max_answer must be bytes, 1 or more")
        self._max_answer = max_answer
        for name, seconds in {"timeout": timeout, "connect_timeout": connect_timeout, "idle_limit": idle_limit}.items():
            if not isinstance(seconds, (int, float)) or seconds <= 0:
                raise InvalidArgumentError(f"{name} must be seconds above 0")
        self._prefix = prefix
        self._serializer = serializer or SerializerJSON()
        self._content_type = CONTENT_PROTO if isinstance(self._serializer, SerializerProto) else CONTENT_JSON
        self._headers: dict[str, str] = {}
        if token is not None:
            self._headers["Authorization"] = bearer(token)
        context = make_context(tls, self._place.scheme)
        self._guard = ForkGuard(f"the client of {self._place.name}")
        self._timeout = urllib3.Timeout(connect=connect_timeout, read=timeout)
        common: dict[str, Any] = {"maxsize": POOL, "retries": False}
        self._pool: urllib3.HTTPConnectionPool = (
            urllib3.HTTPConnectionPool(self._place.host, self._place.port, **common)
            if context is None
            else urllib3.HTTPSConnectionPool(self._place.host, self._place.port, ssl_context=context, **common)
        )
        #: The mirror, while it is watched: ``registry.get(key)`` and ``registry.items(prefix)`` need no network.
        self.registry = Registry(self._place.name, serializer=self._serializer_of_mirror(), sourced=True)
        self._reader = StreamReader(
            self._place,
            context,
            self._headers,
            prefix,
            self.registry,
            connect_timeout=connect_timeout,
            idle_limit=idle_limit,
        )
        self._lock = threading.Lock()  # guards the two below: one thread starts the reader, and not after close
        self._started = False
        self._closed = False

    # Writing.

    def put(
        self, key: str, data: Message, *opts: PutOption, if_match: str | None = None, if_absent: bool = False
    ) -> None:
        """Set *key*, and wait until every subscriber on the other side has accepted it.

        Args:
          if_match: Only if the key still has this ``etag`` (of ``get``).
          if_absent: Only if the key is not there.

        Raises:
          PropagationError: Subscribers refused it; ``errors`` says who and why.
          DoneTimeout, DeliveryTimeout: Subscribers did not answer in time, or have no room.
          SubscriptionError: Nobody watches the key; nothing was applied.
          ConflictError: The condition did not hold; nothing was applied.
          InvalidArgumentError, UnsupportedError, PermissionDenied: Nothing was applied.
          StoreConnectionError: The server was not reached; nothing was applied.
          UnknownOutcome: It was sent and no answer came. It is not tried again.
          ClosedError, ForkedError.
        """
        path = self._path(key)
        settings = read_put_options(opts)
        if settings.ttl is not None or settings.client_lifetime:
            raise UnsupportedError(f"{key!r}: a REST server keeps no value for a time only")
        check_message(data)
        headers = {"Content-Type": self._content_type, **_conditions(if_match, if_absent)}
        self._write("PUT", path, f"put of {key!r}", headers, self._serializer.marshal(data))

    def delete(self, key: str, *opts: DelOption, if_match: str | None = None) -> bool:
        """Delete *key*, and wait for the subscribers; True when there was something to delete. Raises as ``put``."""
        path = self._path(key)
        if read_del_options(opts):
            raise UnsupportedError(f"{key!r}: a REST server deletes one key at a time")
        return self._write("DELETE", path, f"delete of {key!r}", _conditions(if_match, False), None)

    def resync(self, values: Mapping[str, Message]) -> int:
        """Make *values* the whole state of the server, whoever set the rest, and wait for all its subscribers.

        Returns:
          The revision of the new state.

        Raises:
          UnsupportedError: The client has a prefix, and is therefore not the one to speak for everybody.
          As ``put``.
        """
        if self._prefix:
            raise UnsupportedError("a client with a prefix cannot replace the whole state")
        items = []
        for key, message in values.items():
            path_of_key(key)
            check_message(message)
            items.append({"key": key, "value": json.loads(SerializerJSON().marshal(message))})
        body = json.dumps({"items": items}).encode()
        subject = f"resync of {len(items)} key(s)"
        answer = self._request("PUT", "/keys", subject, {"Content-Type": CONTENT_JSON}, body, write=True)
        if answer.status != 200:
            raise self._error(subject, answer, write=True)
        return _revision(subject, answer)

    def propagate_changes(
        self,
        changes: Mapping[str, ChangeValue],
        *,
        ctx: contextvars.Context | None = None,
        timeout: float | None = None,
    ) -> Outcome:
        """Apply *changes* on the server as one transaction, and wait for its subscribers: ``ProtoTxn`` commits with it.

        Args:
          ctx: Not sent; here because a transaction gives it.
          timeout: Seconds to wait for the answer; the client's own when None.

        Returns:
          The revision, and the keys that were ignored because there was nothing to delete.

        Raises:
          As ``put``.
        """
        items = [_change_text(self._prefix + key, change) for key, change in changes.items()]
        subject = f"transaction of {len(items)} key(s)"
        body = f'{{"changes":[{",".join(items)}]}}'.encode()
        headers = {"Content-Type": CONTENT_JSON}
        answer = self._request("PATCH", "/keys", subject, headers, body, write=True, timeout=timeout)
        if answer.status != 200:
            raise self._error(subject, answer, write=True)
        revision = _revision(subject, answer)
        ignored = json.loads(answer.data).get("ignored")
        named = ignored if isinstance(ignored, list) else []
        return Outcome(revision, tuple(key.removeprefix(self._prefix) for key in named if isinstance(key, str)))

    # Reading.

    def get(self, key: str) -> RestKeyVal | None:
        """What the server has under *key*; None when there is nothing.

        Raises:
          PermissionDenied, StoreConnectionError, StoreError, InvalidArgumentError, ClosedError, ForkedError.
        """
        subject = f"get of {key!r}"
        answer = self._request("GET", self._path(key), subject, {}, None, write=False)
        if answer.headers.get("Content-Encoding", "identity") != "identity":  # none was asked for
            raise StoreError(f"{subject}: the answer is compressed")
        if answer.status == 404 and code_of(answer.headers.get("Content-Type", ""), answer.data)[0] == "no-such-key":
            return None
        if answer.status != 200:
            raise self._error(subject, answer, write=False)
        etag = answer.headers.get("ETag", "").removeprefix("W/").strip('"')  # a proxy that compresses weakens it
        number = etag.rpartition("-")[2]
        if not (number.isascii() and number.isdigit() and len(number) < 20):  # success without it is somebody else's
            raise StoreError(f"{subject}: the answer is not that of a datasync server")
        content_type = answer.headers.get("Content-Type", "").partition(";")[0]
        return RestKeyVal(key, answer.data, int(number), content_type, etag)

    def list(self, prefix: str = "") -> Listing:
        """Everything under *prefix*, of one moment. Raises as ``get``."""
        check_text(self._prefix + prefix, "a prefix")
        subject = f"list of {prefix!r}"
        query = f"/events?follow=false&prefix={quote(self._prefix + prefix, safe='')}"
        answer = self._request("GET", query, subject, {}, None, write=False)
        if answer.status != 200:
            raise self._error(subject, answer, write=False)
        try:
            listing = _listing(answer.data, self._prefix)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):  # its text may quote a value
            listing = None
            broken = StoreError(f"{subject}: the answer is not that of a datasync server")
        else:
            broken = StoreConnectionError(f"{self._place.name}: the {subject} ended early")
        if listing is None:
            raise broken
        return listing

    # Watching.

    def watch(
        self,
        resync_name: str,
        change_queue: Queue[Any] | None,
        resync_queue: Queue[Any] | None,
        *key_prefixes: str,
        in_flight: int = 1,
    ) -> Registration:
        """Subscribe to what the server holds; see :meth:`datasync.api.KeyValProtoWatcher.watch`.

        ``done`` is not told to the server: who refuses an event gets a RESYNC after a pause (C10).
        """
        registration = self.registry.watch(resync_name, change_queue, resync_queue, *key_prefixes, in_flight=in_flight)
        with self._lock:
            start = not self._started and not self._closed
            self._started = True
            if start:
                self._reader.start()
        return registration

    def status(self) -> TransportStatus:
        """How the server and the subscriptions are doing (C18); the state is WAITING until something is watched."""
        return self.registry.status()

    def wait_ready(self, timeout: float) -> None:
        """Wait until the first snapshot has come; ``NotReadyError`` with the last error when it has not."""
        self.registry.wait_ready(timeout)

    def close(self) -> None:
        """End the subscriptions, the thread and the connections. May be called twice, and by a subscriber."""
        if self._guard.forked:
            return
        with self._lock:
            self._closed = True
        self.registry.close()
        self._reader.close()
        self._pool.close()

    def __repr__(self) -> str:
        return f"<Client of {self._place.name}>"

    # Requests.

    def _path(self, key: str) -> str:
        if not isinstance(key, str) or not key:
            path_of_key(key)  # says what is wrong with it
        return f"/keys/{path_of_key(self._prefix + key)}"

    def _write(self, method: str, path: str, subject: str, headers: dict[str, str], body: bytes | None) -> bool:
        """True when it was applied, False when there was no such key."""
        answer = self._request(method, path, subject, headers, body, write=True)
        if answer.status in (200, 201):
            _revision(subject, answer)
            return True
        if method == "DELETE" and code_of(answer.headers.get("Content-Type", ""), answer.data)[0] == "no-such-key":
            return False
        raise self._error(subject, answer, write=True)

    def _request(
        self,
        method: str,
        path: str,
        subject: str,
        headers: dict[str, str],
        body: bytes | None,
        *,
        write: bool,
        timeout: float | None = None,
    ) -> _Answer:
        self._guard.check()
        if self._closed:
            raise ClosedError(f"{subject}: the client of {self._place.name} is closed")
        place = self._place.name
        limits = (
            self._timeout if timeout is None else urllib3.Timeout(connect=self._timeout.connect_timeout, read=timeout)
        )
        try:
            answer = self._pool.urlopen(
                method,
                self._place.path + path,
                body=body,
                headers={**self._headers, **headers, "Accept-Encoding": "identity"},
                redirect=False,
                timeout=limits,
                preload_content=False,
                decode_content=False,
            )
            with closing(answer):
                data = _read_all(answer, self._max_answer)
                if data is not None:
                    answer.release_conn()  # else it would be closed, and not used again
        except (NewConnectionError, ConnectTimeoutError) as error:
            raise StoreConnectionError(f"{subject}: {place}: {describe(error)}") from error
        except urllib3.exceptions.ClosedPoolError as error:
            raise ClosedError(f"{subject}: the client of {place} is closed") from error
        except (HTTPError, OSError, ValueError) as error:
            if write and not _before_sending(error):
                text = f"{subject}: it was sent to {place} and no answer came; it may have been applied"
                raise UnknownOutcome(text) from error
            raise StoreConnectionError(f"{subject}: {place}: {describe(error)}") from error
        if data is None:
            text = f"{subject}: the answer of {place} has more than {self._max_answer} bytes"
            raise UnknownOutcome(f"{text}; it may have been applied") if write else StoreError(text)
        return _Answer(answer.status, answer.headers, data)

    def _error(self, subject: str, answer: _Answer, *, write: bool) -> Exception:
        if 300 <= answer.status < 400:
            return StoreError(f"{subject}: {self._place.name} redirects, and writes are not sent elsewhere")
        return error_of(subject, answer.status, answer.headers.get("Content-Type", ""), answer.data, write=write)

    def _serializer_of_mirror(self) -> Serializer:
        # JSON is kept as bytes, everything else with a serializer of its own; an own one for JSON is the caller's.
        return SerializerJSON() if isinstance(self._serializer, SerializerProto) else self._serializer


class _Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    data: bytes

    def __repr__(self) -> str:
        return f"<answer {self.status}, {len(self.data)} bytes>"


def _read_all(answer: urllib3.BaseHTTPResponse, limit: int) -> bytes | None:
    """The body; None when it has more than *limit* bytes, which are not read then."""
    pieces: list[bytes] = []
    size = 0
    while size <= limit and (piece := answer.read(PIECE)):
        pieces.append(piece)
        size += len(piece)
    return None if size > limit else b"".join(pieces)


def _revision(subject: str, answer: _Answer) -> int:
    """What our server says of a write that succeeded; success without it was cut off, or is somebody else's."""
    try:
        return whole(json.loads(answer.data)["revision"])
    except (ValueError, TypeError, KeyError, RecursionError):
        text = f"{subject}: the answer is not that of a datasync server; it may have been applied"
    raise UnknownOutcome(text)


def _listing(data: bytes, prefix: str) -> Listing | None:
    """The snapshot in an event stream; None when its end is missing. Raises whatever comes of data that is none."""
    pairs: dict[str, RestKeyVal] = {}
    for event in EventParser().feed(data):
        if event.name == "items":
            for item in json.loads(event.data):
                key, revision = place_of(item, prefix)
                kind = item["content_type"]
                pairs[key] = RestKeyVal(key, value_of_item(item, kind), revision, kind)
        elif event.name == "synced":
            return Listing(whole(json.loads(event.data)["revision"]), [pairs[key] for key in sorted(pairs)])
    return None


def _before_sending(error: BaseException) -> bool:
    """True for what can only have gone wrong before the request was sent; other TLS errors may come at any time."""
    first = error.args[0] if error.args else None
    return isinstance(error, SSLError) and isinstance(error.__cause__ or first, ssl.SSLCertVerificationError)


def _change_text(key: str, change: ChangeValue) -> str:
    path_of_key(key)
    payload = None if change.get_change_type() is Op.DELETE else change
    return change_of(key, 0, payload)


def _conditions(if_match: str | None, if_absent: bool) -> dict[str, str]:
    if if_match is not None and if_absent:
        raise InvalidArgumentError("if_match and if_absent exclude each other")
    if if_match is not None:
        check_text(if_match, "an etag")
        return {"If-Match": f'"{if_match}"'}
    return {"If-None-Match": "*"} if if_absent else {}
