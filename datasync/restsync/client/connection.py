"""Connections to a server: a pool for requests, and a connection for the event stream that any thread can disconnect.

``HTTPResponse.shutdown()`` of urllib3 cannot replace the second. It exists only after the headers have arrived, so it
does not interrupt connecting, a TLS handshake or the wait for headers; over TLS it drops the reading thread's state.
"""

from __future__ import annotations

import logging
import selectors
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from contextlib import closing, suppress
from os import PathLike, fspath
from typing import Any, NamedTuple

import urllib3
from urllib3.connection import HTTPConnection
from urllib3.exceptions import ConnectTimeoutError, HTTPError, LocationParseError, NewConnectionError, SSLError
from urllib3.response import BaseHTTPResponse
from urllib3.util import parse_url

from datasync.errors import ClosedError, InvalidArgumentError, StoreConnectionError, StoreError, UnknownOutcome
from datasync.restsync.problems import error_of, error_text
from datasync.runtime.sockets import close_in_children, wrap_tls
from datasync.runtime.threads import ForkGuard

log = logging.getLogger(__name__)

#: Seconds to reach the server, TLS included.
CONNECT_TIMEOUT = 5.0
#: Connections that the pool keeps for the next request.
POOL_SIZE = 16
#: Bytes of one read.
READ_SIZE = 64 * 1024
#: A context, or the file of the CA that signed the server's certificate.
ClientTls = ssl.SSLContext | str | PathLike[str]


class ServerAddress(NamedTuple):
    """The parts of a server's URL."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def name(self) -> str:
        """The URL, for messages."""
        return f"{self.scheme}://{self.host}:{self.port}{self.path}"


def read_url(url: str) -> ServerAddress:
    """Parse the URL of a server. Raises ``InvalidArgumentError``."""
    try:
        parsed = parse_url(url)
    except (LocationParseError, AttributeError, TypeError, ValueError):
        parsed = None
    if parsed is None:  # outside the handler: the parser's error quotes the URL, which may have a password
        raise InvalidArgumentError("the URL of a server must be http://host:port or https://host:port")
    if parsed.scheme not in ("http", "https") or not parsed.host or parsed.query or parsed.fragment:
        raise InvalidArgumentError(
            "the URL of a server must be http://host:port/path or https://host:port/path, without a query"
        )
    if parsed.auth or "@" in (parsed.path or ""):  # a slash in a password moves the rest of it into the path
        raise InvalidArgumentError("the URL of a server must not contain credentials: use token=")
    port = parsed.port or (443 if parsed.scheme == "https" else 80)
    return ServerAddress(parsed.scheme, parsed.host, port, (parsed.path or "").rstrip("/"))


def make_client_context(tls: ClientTls | None, scheme: str) -> ssl.SSLContext | None:
    """Return the context for HTTPS; None for HTTP. Raises ``InvalidArgumentError``."""
    if scheme == "http":
        if tls is not None:
            raise InvalidArgumentError("tls= needs a URL that begins with https://")
        return None
    if isinstance(tls, ssl.SSLContext):
        if tls.verify_mode is not ssl.CERT_REQUIRED or not tls.check_hostname:
            log.warning("tls= does not verify the server: an attacker can impersonate it")
        return tls
    try:
        context = ssl.create_default_context(cafile=None if tls is None else fspath(tls))
        context.minimum_version = ssl.TLSVersion.TLSv1_2  # even where the system allows less
        return context
    except (OSError, TypeError, ValueError) as error:  # ValueError: a path with a NUL
        raise InvalidArgumentError(f"cannot load the CA file of tls=: {error}") from error


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
        self._address = address
        self._headers = headers
        self._max_response = max_response
        self._timeout = urllib3.Timeout(connect=connect_timeout, read=timeout)
        self.guard = ForkGuard(f"the client of {address.name}")
        #: Set before ``close`` to reject new requests.
        self.closed = False
        common: dict[str, Any] = {"maxsize": POOL_SIZE, "retries": False}
        self._pool: urllib3.HTTPConnectionPool = (
            urllib3.HTTPConnectionPool(address.host, address.port, **common)
            if context is None
            else urllib3.HTTPSConnectionPool(address.host, address.port, ssl_context=context, **common)
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
          timeout: Seconds to wait for the response; None for the usual time.

        Raises:
          StoreConnectionError: The request did not reach the server, or failed and was a read.
          UnknownOutcome: The write was sent, and no complete response arrived.
          StoreError: The response to a read is too large.
          ClosedError, ForkedError.
        """
        self.guard.check()
        name = self._address.name
        timeouts = self._timeout
        if timeout is not None:
            timeouts = urllib3.Timeout(connect=timeouts.connect_timeout, read=timeout)
        if self.closed:
            raise ClosedError(f"{subject}: the client of {name} is closed")
        try:
            response = self._pool.urlopen(
                method,
                self._address.path + path,
                body=body,
                headers={**self._headers, **(headers or {}), "Accept-Encoding": "identity"},
                redirect=False,
                timeout=timeouts,
                preload_content=False,
                decode_content=False,
            )
            with closing(response):
                data = _read_all(response, self._max_response)
                if data is not None:
                    response.release_conn()  # without this the connection is closed, and not reused
        except (NewConnectionError, ConnectTimeoutError) as error:
            raise StoreConnectionError(f"{subject}: {name}: {describe(error)}") from error
        except urllib3.exceptions.ClosedPoolError as error:
            raise ClosedError(f"{subject}: the client of {name} is closed") from error
        except (HTTPError, OSError, ValueError) as error:
            if write and not _before_sending(error):
                text = f"{subject}: sent to {name}, but no response arrived; the write may have been applied"
                raise UnknownOutcome(text) from error
            raise StoreConnectionError(f"{subject}: {name}: {describe(error)}") from error
        if data is None:
            text = f"{subject}: the response of {name} has more than {self._max_response} bytes"
            raise UnknownOutcome(f"{text}; the write may have been applied") if write else StoreError(text)
        return ReceivedResponse(response.status, response.headers, data)

    def error(self, subject: str, response: ReceivedResponse, *, write: bool = False) -> Exception:
        """Return the exception for a response that reports a failure."""
        if 300 <= response.status < 400:
            return StoreError(f"{subject}: {self._address.name} redirects, and the client does not follow redirects")
        return error_of(subject, response.status, response.content_type, response.data, write=write)

    def close(self) -> None:
        """Close the connections; the one of a pending request closes after it."""
        self.closed = True
        self._pool.close()


class StreamConnection:
    """One GET whose response never ends. Threads: one reads; ``cut`` from any."""

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
        self._connection: HTTPConnection | None = None
        self._response: BaseHTTPResponse | None = None

    def open(self, target: str, headers: dict[str, str]) -> BaseHTTPResponse:
        """Connect, send the request, and return the response with its body unread.

        Raises:
          StoreConnectionError: The server cannot be reached, or does not respond.
          ClosedError: ``cut`` was called.
        """
        try:
            sock = self._connect()
            connection = HTTPConnection(self._address.host, self._address.port, timeout=self._idle_limit)
            connection.sock = sock
            self._connection = connection
            connection.request("GET", target, headers=headers, preload_content=False, decode_content=False)
            self._response = connection.getresponse()
            return self._response
        except (OSError, HTTPError, ValueError) as error:
            raise self._failed(error) from error

    def read(self) -> bytes:
        """Return the bytes that have arrived; none at the end. Raises as ``open``."""
        assert self._response is not None
        try:
            return self._response.read1(READ_SIZE)  # type: ignore[no-any-return, unused-ignore]
        except (OSError, HTTPError, ValueError, AttributeError) as error:
            raise self._failed(error) from error

    def read_rest(self, limit: int) -> bytes:
        """Return the body of a response that is not a stream, up to about *limit* bytes."""
        body = b""
        while len(body) < limit and (chunk := self.read()):
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
        """Return a connected socket, after the TLS handshake. No step blocks for long after ``cut``."""
        deadline = time.monotonic() + self._connect_timeout
        failure: OSError = ConnectionError("the host name has no address")
        for family, kind, protocol, _, address in socket.getaddrinfo(
            self._address.host.strip("[]"), self._address.port, type=socket.SOCK_STREAM
        ):
            sock = socket.socket(family, kind, protocol)
            try:
                sock.setblocking(False)
                sock.connect_ex(address)
                self._await(sock, selectors.EVENT_WRITE, deadline)
                code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if code:
                    raise OSError(code, "cannot connect")
                return self._secure(self._keep(sock), deadline)
            except OSError as error:
                sock.close()
                failure = error
        raise failure

    def _secure(self, sock: socket.socket, deadline: float) -> socket.socket:
        if self._context is None:
            sock.settimeout(self._idle_limit)
            return sock
        host = self._address.host.strip("[]")
        secured = wrap_tls(self._context, sock, server_hostname=host, do_handshake_on_connect=False)
        self._keep(secured)
        secured.setblocking(False)
        while True:
            try:
                secured.do_handshake()
                break
            except ssl.SSLWantReadError:
                self._await(secured, selectors.EVENT_READ, deadline)
            except ssl.SSLWantWriteError:
                self._await(secured, selectors.EVENT_WRITE, deadline)
        secured.settimeout(self._idle_limit)
        return secured

    def _await(self, sock: socket.socket, event: int, deadline: float) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(sock, event)
            while not self._cut.is_set():
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    raise TimeoutError(f"not connected within {self._connect_timeout:g} s")
                # In short steps: another thread cannot shut down a socket that is not connected yet.
                if selector.select(min(remaining, 0.1)):
                    return
        raise ConnectionAbortedError("closed")

    def _keep(self, sock: socket.socket) -> socket.socket:
        close_in_children(sock)
        with self._lock:
            self._socket = sock
        if self._cut.is_set():  # cut() came before it could find this socket
            raise ConnectionAbortedError("closed")
        return sock

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


def _before_sending(error: BaseException) -> bool:
    """Return True for an error that can only occur before the request is sent; other TLS errors occur at any time."""
    first = error.args[0] if error.args else None
    return isinstance(error, SSLError) and isinstance(error.__cause__ or first, ssl.SSLCertVerificationError)
