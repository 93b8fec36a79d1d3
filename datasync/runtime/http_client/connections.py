"""Requests over HTTP: a pool for calls, and a connection for long ones that any thread can disconnect.

``HTTPResponse.shutdown()`` of urllib3 cannot replace the second. It exists only after the headers have arrived, so it
does not interrupt connecting, a TLS handshake or the wait for headers; over TLS it drops the reading thread's state.

On floor 0 because a driver and a transport share it. Source: contract C13, C15, C23.
"""

from __future__ import annotations

import os
import selectors
import socket
import ssl
import threading
import time
import weakref
from collections.abc import Mapping
from contextlib import closing, suppress
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from typing import Any, NamedTuple

import urllib3
from urllib3.exceptions import HTTPError
from urllib3.response import BaseHTTPResponse

from datasync.errors import (
    ClosedError,
    StoreConnectionError,
    StoreError,
    UnknownOutcome,
    error_text,
)
from datasync.runtime.http_client.timed_connection import CallDeadline, ServerAddress, TimedConnection, open_socket
from datasync.runtime.sockets import close_in_children
from datasync.runtime.threads import ForkGuard

#: Connections that the pool keeps for the next request.
POOL_SIZE = 16
#: Bytes of one read.
READ_SIZE = 64 * 1024


class ReceivedResponse(NamedTuple):
    """A response of the server, read to its end."""

    status: int
    headers: Mapping[str, str]
    data: bytes

    @property
    def content_type(self) -> str:
        """Content type with its parameters; empty without one."""
        return self.headers.get("Content-Type", "")

    def __repr__(self) -> str:
        return f"<response {self.status}, {len(self.data)} bytes>"


class RequestPool:
    """Sends requests over a pool of connections, and maps every failure to an error of the library. Threads: any."""

    def __init__(
        self,
        address: ServerAddress,
        context: ssl.SSLContext | None,
        headers: dict[str, str],
        *,
        timeout: float,
        connect_timeout: float,
        max_response: int,
    ) -> None:
        self.guard = ForkGuard(f"the client of {address.name}")  # first: it refuses to be pickled in clear words
        self._address = address
        self._context = context
        self._headers = headers
        self._max_response = max_response
        self._timeout = timeout
        self._connect_timeout = connect_timeout
        self._deadline = CallDeadline()
        #: Set before ``close`` to reject new requests.
        self.closed = False
        self._pool = _Pool(
            address.host,
            address.port,
            timeout=None,
            maxsize=POOL_SIZE,
            retries=False,
            deadline=self._deadline,
            connect=self._connect,
        )

    def send(
        self,
        method: str,
        path: str,
        subject: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        write: bool = False,
        timeout: float | None = None,
    ) -> ReceivedResponse:
        """Send one request, once, and return the response, whatever its status.

        Args:
          subject: The request in words, for messages.
          write: The request may change something.
          timeout: Seconds for the whole call, from connecting to the last byte of the response; None: the usual time.

        Raises:
          StoreConnectionError: No byte of the request was sent, or it failed and was a read.
          UnknownOutcome: The write was sent, and no complete response arrived.
          StoreError: The response to a read is too large.
          ClosedError, ForkedError.
        """
        self.guard.check()
        name = self._address.name
        if self.closed:
            raise ClosedError(f"{subject}: the client of {name} is closed")
        self._deadline.start(self._timeout if timeout is None else timeout)
        try:
            response = self._pool.urlopen(
                method,
                self._address.path + path,
                body=body,
                headers={**self._headers, **(headers or {}), "Accept-Encoding": "identity"},
                redirect=False,
                preload_content=False,
                decode_content=False,
            )
            with closing(response):
                data = _read_all(response, self._max_response)
                if data is not None:
                    response.release_conn()  # without this the connection is closed, and not reused
        except urllib3.exceptions.ClosedPoolError as error:
            raise ClosedError(f"{subject}: the client of {name} is closed") from error
        except (HTTPError, OSError, ValueError) as error:
            if write and self._deadline.sent:
                text = f"{subject}: sent to {name}, but no response arrived; the write may have been applied"
                raise UnknownOutcome(text) from error
            raise StoreConnectionError(f"{subject}: {name}: {describe(error)}") from error
        if data is None:
            text = f"{subject}: the response of {name} has more than {self._max_response} bytes"
            raise UnknownOutcome(f"{text}; the write may have been applied") if write else StoreError(text)
        return ReceivedResponse(response.status, response.headers, data)

    def close(self) -> None:
        """Close the connections; the one of a pending request closes after it."""
        self.closed = True
        self._pool.close()

    def _connect(self) -> socket.socket:
        until = min(self._deadline.at, time.monotonic() + self._connect_timeout)
        return open_socket(self._address, self._context, until)


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = TimedConnection

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        _pools.add(self)


_pools: weakref.WeakSet[_Pool] = weakref.WeakSet()


def _release_pools_in_child() -> None:
    """Release the queues of the pools, which a thread of the parent may have held at the fork.

    urllib3 empties them when the interpreter ends, and that would wait for ever.
    """
    for pool in list(_pools):
        if pool.pool is not None:
            pool.pool.mutex._at_fork_reinit()  # type: ignore[attr-defined]  # as the standard library does


os.register_at_fork(after_in_child=_release_pools_in_child)


class StreamConnection:
    """A connection for a GET whose response never ends, or for one request after another, each read to its end.

    Threads: one opens and reads; ``cut`` from any.
    """

    def __init__(
        self, address: ServerAddress, context: ssl.SSLContext | None, connect_timeout: float, idle_limit: float
    ) -> None:
        self._address = address
        self._context = context
        self._connect_timeout = connect_timeout
        self._idle_limit = idle_limit
        self._lock = threading.Lock()  # guards _socket; cut() disconnects a socket that is made after it, too
        self._socket: socket.socket | None = None
        self._cut = threading.Event()
        self._deadline = CallDeadline()
        self._connection: TimedConnection | None = None
        self._response: BaseHTTPResponse | None = None

    def open(self, target: str, headers: dict[str, str]) -> BaseHTTPResponse:
        """Connect unless the last request left a connection, send the request, and return the response, body unread.

        Raises:
          StoreConnectionError: The server cannot be reached, or does not respond.
          ClosedError: ``cut`` was called.
        """
        self.request(target, headers)
        return self.response()

    def request(self, target: str, headers: dict[str, str], method: str = "GET") -> None:
        """As ``open``, without waiting for the response."""
        try:
            if self._connection is None:
                self._connection = TimedConnection(
                    self._address.host, self._address.port, deadline=self._deadline, connect=self._connect
                )
            if self._connection.sock is None:
                self._connection.connect()
            self._deadline.start(self._idle_limit)
            self._connection.request(method, target, headers=headers, preload_content=False, decode_content=False)
        except (OSError, HTTPError, HTTPException, ValueError) as error:
            raise self._failed(error) from error

    def ready(self, seconds: float) -> bool:
        """Wait *seconds* for the first bytes of the response, or for the end of the connection."""
        assert self._connection is not None
        sock = self._connection.sock
        if sock is None or self._cut.is_set():
            return True
        with selectors.DefaultSelector() as selector:
            try:
                selector.register(sock, selectors.EVENT_READ)
            except ValueError:  # closed by a fork or by close()
                return True
            return bool(selector.select(max(0.0, seconds)))

    def response(self) -> BaseHTTPResponse:
        """Return the response to ``request``, within the idle timeout of that. Raises as ``open``."""
        assert self._connection is not None
        try:
            self._response = self._connection.getresponse()
            return self._response
        except (OSError, HTTPError, HTTPException, ValueError) as error:
            raise self._failed(error) from error

    def read(self) -> bytes:
        """Return the bytes that have arrived; none at the end. Raises as ``open``."""
        self._deadline.start(self._idle_limit)
        return self._read()

    def _read(self) -> bytes:
        assert self._response is not None
        try:
            return self._response.read1(READ_SIZE)  # type: ignore[no-any-return, unused-ignore]
        except (OSError, HTTPError, HTTPException, ValueError, AttributeError) as error:
            raise self._failed(error) from error

    def read_rest(self, limit: int) -> bytes:
        """Return the body of a response that is not a stream, up to about *limit* bytes, within the idle timeout."""
        self._deadline.start(self._idle_limit)
        body = b""
        while len(body) < limit and (chunk := self._read()):
            body += chunk
        return body

    def cut(self) -> None:
        """Disconnect, and wake the thread that connects or reads."""
        self._cut.set()
        with self._lock:
            sock = self._socket
        if sock is not None:
            with suppress(OSError, ValueError):
                # Not SSLSocket.shutdown: it drops the TLS state while another thread may read with it.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def close(self) -> None:
        """Release the connection. Only the reading thread calls this."""
        if self._response is not None:
            self._response.close()
        if self._connection is not None:
            self._connection.close()
        with self._lock:
            sock, self._socket = self._socket, None
        if sock is not None:
            sock.close()

    def _connect(self) -> socket.socket:
        return open_socket(
            self._address,
            self._context,
            time.monotonic() + self._connect_timeout,
            keep=self._keep,
            is_cut=self._cut.is_set,
        )

    def _keep(self, sock: socket.socket) -> None:
        close_in_children(sock)
        with self._lock:
            self._socket = sock
        if self._cut.is_set():  # cut() came before it could find this socket
            raise ConnectionAbortedError("closed")

    def _failed(self, error: Exception) -> ClosedError | StoreConnectionError:
        if self._cut.is_set():
            return ClosedError("the event stream was closed")
        return StoreConnectionError(f"{self._address.name}: {describe(error)}")


def describe(error: BaseException) -> str:
    """Return the innermost reason of an error of the HTTP library."""
    first = error.args[0] if error.args else None
    inner = error.__cause__ or (first if isinstance(first, BaseException) else error)
    if isinstance(inner, ssl.SSLCertVerificationError):
        return f"the server's certificate is not valid ({inner.verify_message})"
    if isinstance(inner, OSError) and inner.strerror:
        return inner.strerror
    return error_text(inner)


def _read_all(response: BaseHTTPResponse, limit: int) -> bytes | None:
    """Return the body; None when it has more than *limit* bytes, and the rest is left unread."""
    chunks: list[bytes] = []
    size = 0
    while size <= limit and (chunk := response.read(READ_SIZE)):
        chunks.append(chunk)
        size += len(chunk)
    return None if size > limit else b"".join(chunks)


def time_of(headers: Mapping[str, str]) -> dict[str, object]:
    """Return the clock of the server in a response, as ``StoreDriver.facts`` names it; empty if it has none."""
    try:
        return {"time": parsedate_to_datetime(headers.get("Date", "")).timestamp()}
    except (TypeError, ValueError):
        return {}
