"""The client: writes to a server, reads from it, and watches it.

Source: contract C13, C16-C18; cn-infra has no REST client.
"""

from __future__ import annotations

import contextvars
import json
import threading
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from queue import Queue
from typing import Any
from urllib.parse import quote

from google.protobuf.message import Message

from datasync.api import WAIT_TIMEOUT
from datasync.checks import check_key, check_message
from datasync.commits import HasRevision, WriteResult, note_own_write
from datasync.errors import (
    InvalidArgumentError,
    NotReadyError,
    PropagationError,
    StoreConnectionError,
    StoreError,
    UnsupportedError,
)
from datasync.events import ChangeValue
from datasync.options import DelOption, PutOption, read_del_options, read_put_options
from datasync.restsync.arguments import check_numbers
from datasync.restsync.client.connection import (
    CONNECT_TIMEOUT,
    ClientTls,
    ServerRequests,
    make_client_context,
    read_url,
)
from datasync.restsync.client.event_source import (
    StreamReader,
    check_prefix,
)
from datasync.restsync.client.listing import Listing, RestKeyVal, read_listing
from datasync.restsync.client.writes import (
    change_text,
    conditions,
    is_no_such_key,
    of_another_key,
    revision_in,
    written,
)
from datasync.restsync.encoding import CONTENT_JSON, CONTENT_PROTO
from datasync.restsync.keys import (
    KEY_HEADER,
    NOT_ACCEPTED_HEADER,
    check_path_key,
    check_text,
    count_of_keys,
    escape,
    path_of_key,
    unescape_names,
)
from datasync.restsync.problems import code_of
from datasync.runtime.closing import Closable
from datasync.runtime.http_client.connections import ReceivedResponse, StreamConnection
from datasync.runtime.tokens import bearer
from datasync.runtime.wording import below
from datasync.serializer import Serializer, SerializerJSON, SerializerProto
from datasync.syncbase.futures import Outcome
from datasync.syncbase.registration import Registration
from datasync.syncbase.registry import Registry
from datasync.syncbase.status import TransportStatus
from datasync.tracing import sent, trace_headers

#: Seconds for a whole call: longer than the server waits for its subscribers.
RESPONSE_TIMEOUT = 10.0
#: Idle timeout of an event stream in seconds; the client asks for heartbeats three times as often.
IDLE_LIMIT = 30.0
#: Bytes of a response.
MAX_RESPONSE = 256 * 1024 * 1024
_JSON_HEADERS = {"Content-Type": CONTENT_JSON}


class Client(Closable):
    """A writer, reader and watcher of one REST server.

    The first ``watch`` starts one thread, which mirrors everything under *prefix*. Reads and writes need no thread.

    Args:
      url: URL of the server, with the path at which the application is mounted.
      prefix: Text in front of every key; callers and subscribers see keys relative to it.
      token: Token to send as ``Authorization: Bearer``.
      tls: CA file, or a context; for ``https://`` only.
      serializer: Encoding of messages: ``SerializerJSON`` (the default) or ``SerializerProto``.
      timeout: Seconds for a whole call, from connecting to the last byte of the response.
      connect_timeout: Seconds to wait for a connection, TLS included.
      idle_limit: Idle timeout in seconds, after which an event stream is reconnected.
      max_answer: Bytes of a response, and of a snapshot in the event stream; listings are the largest.

    Raises:
      InvalidArgumentError: An argument is not valid.

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
        timeout: float = RESPONSE_TIMEOUT,
        connect_timeout: float = CONNECT_TIMEOUT,
        idle_limit: float = IDLE_LIMIT,
        max_answer: int = MAX_RESPONSE,
    ) -> None:
        self._address = read_url(url)
        if not isinstance(prefix, str):
            raise InvalidArgumentError(f"a prefix must be a string, not a {type(prefix).__name__}")
        check_text(prefix, "a prefix")
        check_numbers(
            {
                "max_answer": max_answer,
                "timeout": timeout,
                "connect_timeout": connect_timeout,
                "idle_limit": idle_limit,
            }
        )
        self._prefix = prefix
        self._serializer = serializer or SerializerJSON()
        self._content_type = CONTENT_PROTO if isinstance(self._serializer, SerializerProto) else CONTENT_JSON
        headers = {} if token is None else {"Authorization": bearer(token)}
        context = make_client_context(tls, self._address.scheme)
        self._requests = ServerRequests(
            self._address,
            context,
            headers,
            timeout=timeout,
            connect_timeout=connect_timeout,
            max_response=max_answer,
        )
        # The mirror keeps JSON as bytes, and every other value with a serializer of its own.
        mirrored = SerializerJSON() if isinstance(self._serializer, SerializerProto) else self._serializer
        #: The mirror while something is watched: ``registry.get(key)`` and ``registry.items(prefix)`` read it locally.
        self.registry = Registry(self._address.name, serializer=mirrored, sourced=True)
        connect = partial(StreamConnection, self._address, context, connect_timeout, idle_limit)
        self._reader = StreamReader(
            self._address, connect, headers, prefix, self.registry, idle_limit=idle_limit, max_snapshot=max_answer
        )
        # Guards _started and the end of the requests: one thread starts the reader, and none after close().
        self._lock = threading.Lock()
        self._started = False

    # Writes.

    def put(
        self,
        key: str,
        data: Message,
        *opts: PutOption,
        if_match: str | None = None,
        if_absent: bool = False,
        timeout: float | None = None,
    ) -> WriteResult:
        """Set *key*, and wait until every subscriber on the server has accepted the change.

        Args:
          if_match: Write only if the key still has this ``etag`` (from ``get``).
          if_absent: Write only if the key does not exist.
          timeout: Seconds for the whole call; None for the client's own timeout.

        Returns:
          The result with the server's revision, for ``wait_for``.

        Raises:
          PropagationError: Subscribers rejected the change; ``reasons`` has the text by resync name and key.
          DoneTimeout, DeliveryTimeout: Subscribers did not acknowledge in time, or have a full queue.
          SubscriptionError: No subscriber watches the key; nothing was applied.
          ConflictError: The condition did not hold; nothing was applied.
          InvalidArgumentError, UnsupportedError, PermissionDenied: Nothing was applied.
          StoreConnectionError: The server could not be reached, or was overloaded; nothing was applied.
          UnknownOutcome: The write was sent, but no response of the server arrived, or one about another key. It is
            not retried.
          ClosedError, ForkedError.
        """
        self._check(key, timeout)
        settings = read_put_options(opts)
        if settings.ttl is not None or settings.client_lifetime:
            raise UnsupportedError(f"{key!r}: a REST server does not support values with a lifetime")
        check_message(data)
        headers = {"Content-Type": self._content_type, **conditions(if_match, if_absent)}
        return self._write_key("PUT", key, f"put of {key!r}", headers, self._serializer.marshal(data), timeout)

    def delete(
        self, key: str, *opts: DelOption, if_match: str | None = None, timeout: float | None = None
    ) -> WriteResult:
        """Delete *key*, and wait for the subscribers. The result is true when the key existed. Raises as ``put``."""
        self._check(key, timeout)
        if read_del_options(opts):
            raise UnsupportedError(f"{key!r}: a REST server deletes single keys only")
        return self._write_key("DELETE", key, f"delete of {key!r}", conditions(if_match, False), None, timeout)

    def resync(self, values: Mapping[str, Message], *, timeout: float | None = None) -> int:
        """Replace the whole state of the server with *values*, and wait for all subscribers.

        Args:
          timeout: Seconds for the whole call; None for the client's own timeout.

        Returns:
          The revision of the new state.

        Raises:
          UnsupportedError: The client has a prefix, so it cannot replace the keys outside of it.
          As ``put``.
        """
        if self._prefix:
            raise UnsupportedError("a client with a prefix cannot replace the whole state")
        self._check(None, timeout)
        items = []
        for key, message in values.items():
            check_path_key(key)
            check_message(message)
            items.append({"key": key, "value": json.loads(SerializerJSON().marshal(message))})
        subject = f"resync of {count_of_keys(len(items))}"
        body = json.dumps({"items": items}).encode()
        return int(self._write("PUT", None, subject, _JSON_HEADERS, body, timeout)["revision"])

    def propagate_changes(
        self,
        changes: Mapping[str, ChangeValue],
        *,
        ctx: contextvars.Context | None = None,
        timeout: float | None = None,
    ) -> Outcome:
        """Apply *changes* on the server as one transaction, and wait for the subscribers: ``ProtoTxn`` commits with it.

        Args:
          ctx: Not sent; accepted because a transaction passes it.
          timeout: Seconds for the whole call; None for the client's own timeout.

        Returns:
          The revision, and the keys that were ignored because there was nothing to delete.

        Raises:
          As ``put``.
        """
        self._check(None, timeout)
        items = [change_text(self._prefix + key, change) for key, change in changes.items()]
        subject = f"transaction of {count_of_keys(len(items))}"
        body = f'{{"changes":[{",".join(items)}]}}'.encode()
        document = self._write("PATCH", None, subject, _JSON_HEADERS, body, timeout)
        named = document.get("ignored")
        ignored = [key for key in named if isinstance(key, str)] if isinstance(named, list) else []
        outcome = Outcome(document["revision"], tuple(key.removeprefix(self._prefix) for key in ignored))
        for key in changes.keys() - set(outcome.ignored):
            note_own_write(self.registry, key, outcome.revision)
        return outcome

    # Reads.

    def get(self, key: str, *, timeout: float | None = None) -> RestKeyVal | None:
        """Return the pair under *key*; None when the key does not exist.

        Args:
          timeout: Seconds for the whole call; None for the client's own timeout.

        Raises:
          PermissionDenied, StoreConnectionError, StoreError, InvalidArgumentError, ClosedError, ForkedError.
        """
        subject = f"get of {key!r}"
        self._check(key, timeout)
        response = self._send("GET", key, subject, timeout=timeout)
        if response.headers.get("Content-Encoding", "identity") != "identity":  # the request asked for none
            raise StoreError(f"{subject}: the response is compressed")
        if response.status == 404 and is_no_such_key(response):
            return None
        if response.status != 200:
            raise self._requests.error(subject, response)
        rejected = response.headers.get(NOT_ACCEPTED_HEADER, "")
        etag = response.headers.get("ETag", "").removeprefix("W/").strip('"')  # a compressing proxy weakens the tag
        number = etag.rpartition("-")[2]
        if not (number.isascii() and number.isdigit() and len(number) < 20):  # another kind of server
            raise StoreError(f"{subject}: the response is not from a datasync server")
        content_type = response.content_type.partition(";")[0]
        pair = RestKeyVal(key, response.data, int(number), content_type, etag)
        pair.not_accepted = unescape_names(rejected)
        return pair

    def list(self, prefix: str = "", *, timeout: float | None = None) -> Listing:
        """Return everything under *prefix*, at one revision. Arguments and errors as of ``get``."""
        self._check(None, timeout)
        whole = self._prefix + prefix
        check_text(whole, "a prefix")
        subject = f"list of {below(prefix)}"
        query = f"/events?follow=false&prefix={quote(whole, safe='')}"
        response = self._requests.send("GET", query, subject, timeout=timeout)
        if response.status != 200:
            raise self._requests.error(subject, response)
        failure = StoreError(f"{subject}: the response is not from a datasync server")
        with suppress(ValueError, TypeError, KeyError, AttributeError, RecursionError):  # their text may quote a value
            check_prefix(response.headers, whole)
            if (listing := read_listing(response.data, self._prefix)) is not None:
                return listing
            failure = StoreConnectionError(f"{self._address.name}: the {subject} ended early")
        raise failure

    def server_status(self, *, timeout: float | None = None) -> dict[str, Any]:
        """Return what the server's dashboard shows, without keys and values. Arguments and errors as of ``get``."""
        self._check(None, timeout)
        subject = "status of the server"
        response = self._requests.send("GET", "/status?limit=0", subject, timeout=timeout)
        if response.status != 200:
            raise self._requests.error(subject, response)
        with suppress(ValueError, RecursionError):
            document = json.loads(response.data)
            if isinstance(document, dict) and isinstance(document.get("sources"), list):
                return document
        raise StoreError(f"{subject}: the response is not from a datasync server")

    # Watching.

    def watch(
        self,
        resync_name: str,
        change_queue: Queue[Any] | None,
        resync_queue: Queue[Any] | None,
        *key_prefixes: str,
        in_flight: int = 1,
    ) -> Registration:
        """Subscribe to the state of the server; see :meth:`datasync.api.KeyValProtoWatcher.watch`.

        The server does not receive the acknowledgement: keys that a subscriber rejects are delivered to it again (C10).
        """
        registration = self.registry.watch(resync_name, change_queue, resync_queue, *key_prefixes, in_flight=in_flight)
        with self._lock:
            start = not self._started and not self._requests.closed
            self._started = True
            if start:
                self._reader.start()
        return registration

    def status(self) -> TransportStatus:
        """Return the state of the connection and of the subscriptions (C18); WAITING until something is watched."""
        return self.registry.status()

    def wait_ready(self, timeout: float) -> None:
        """Wait *timeout* seconds for the first snapshot. Raises ``NotReadyError`` with the last error."""
        self.registry.wait_ready(timeout)

    def wait_for(self, write: int | HasRevision, timeout: float = WAIT_TIMEOUT) -> None:
        """Wait until the mirror has *write*; see :meth:`datasync.syncbase.registry.Registry.wait_for` (C21).

        Raises ``NotReadyError`` while nothing is watched, so that there is no mirror.
        """
        if not self._started:
            raise NotReadyError(f"{self._address.name}: the mirror of the client is filled when something is watched")
        self.registry.wait_for(write, timeout)

    def close(self) -> None:
        """End the subscriptions, the thread and the connections. May be called twice, and by a subscriber."""
        if self._requests.guard.forked:
            return
        with self._lock:
            self._requests.closed = True
        self.registry.close()
        self._reader.close()
        self._requests.close()

    def __repr__(self) -> str:
        return f"<Client of {self._address.name}>"

    # Requests.

    def _check(self, key: str | None, timeout: float | None) -> None:
        """Raise ``InvalidArgumentError`` for what could not be sent; a key of None stands for the whole state."""
        if key is not None:
            check_key(key)
            check_path_key(self._prefix + key)
        if timeout is not None:
            check_numbers({"timeout": timeout})

    def _send(
        self,
        method: str,
        key: str | None,
        subject: str,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        *,
        write: bool = False,
        timeout: float | None = None,
    ) -> ReceivedResponse:
        """Send a request about *key*, and return the response if it is about the same key."""
        if key is None:
            headers = trace_headers() | dict(headers or {})
            return self._requests.send(
                method, "/keys", subject, headers=headers, body=body, write=write, timeout=timeout
            )
        whole = self._prefix + key
        named = {KEY_HEADER: escape(whole)}
        response = self._requests.send(
            method,
            path_of_key(whole),
            subject,
            headers=named | trace_headers() | dict(headers or {}),
            body=body,
            write=write,
            timeout=timeout,
        )
        if code_of(response.content_type, response.data)[0] == "rewritten":  # the server has noticed it first
            raise self._requests.error(subject, response, write=write)
        if response.headers.get(KEY_HEADER, named[KEY_HEADER]) != named[KEY_HEADER]:
            raise of_another_key(subject, write)
        return response

    def _write_key(
        self, method: str, key: str, subject: str, headers: Mapping[str, str], body: bytes | None, timeout: float | None
    ) -> WriteResult:
        seen = self.registry.position
        document = self._write(method, key, subject, headers, body, timeout)
        return self.registry.own_write(key, revision_in(document), "key" in document, seen)

    def _write(
        self,
        method: str,
        key: str | None,
        subject: str,
        headers: Mapping[str, str],
        body: bytes | None,
        timeout: float | None,
    ) -> dict[str, Any]:
        """Return the document of a write that succeeded, with its revision; without a key when a delete found none."""
        with sent(self._address.name, None if key is None else (key,)) as trace:
            response = self._send(method, key, subject, {**headers, **trace}, body, write=True, timeout=timeout)
            if response.status == 200 or (response.status == 201 and key is not None):
                document = written(subject, response)
                if key is not None and document.get("key") != self._prefix + key:
                    raise of_another_key(subject, True)
                return document
            if method == "DELETE" and is_no_such_key(response):
                return code_of(response.content_type, response.data)[1]
            error = self._requests.error(subject, response, write=True)
            raise self._relative(error) if isinstance(error, PropagationError) else error

    def _relative(self, error: PropagationError) -> PropagationError:
        """Return *error* with keys as the caller knows them."""
        reasons = {
            name: {key.removeprefix(self._prefix): text for key, text in texts.items()}
            for name, texts in error.reasons.items()
        }
        return PropagationError.told(reasons, retryable=error.retryable, retry_after=error.retry_after)
