"""The way to a server: where it is, and one connection that can be cut at any moment, for the event stream."""

from __future__ import annotations

import logging
import selectors
import socket
import ssl
import threading
import time
from os import PathLike, fspath
from typing import NamedTuple

from urllib3.connection import HTTPConnection
from urllib3.exceptions import HTTPError, LocationParseError
from urllib3.response import BaseHTTPResponse
from urllib3.util import parse_url

from datasync.errors import ClosedError, InvalidArgumentError, StoreConnectionError
from datasync.runtime.sockets import close_in_children

log = logging.getLogger(__name__)

#: Seconds to reach the server, TLS included.
CONNECT_TIMEOUT = 5.0
#: A context, or the file of the authority that signed the server's certificate.
ClientTls = ssl.SSLContext | str | PathLike[str]


class Place(NamedTuple):
    """Where a server is."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.scheme}://{self.host}:{self.port}{self.path}"


def read_url(url: str) -> Place:
    """Take *url* apart; raises ``InvalidArgumentError``."""
    try:
        parsed = parse_url(url)
    except (LocationParseError, AttributeError, TypeError, ValueError):
        parsed = None
    if parsed is None:  # outside the except block: the parser's error quotes the URL, and there may be a password in it
        raise InvalidArgumentError("a server's URL is http://host:port or https://host:port")
    if parsed.scheme not in ("http", "https") or not parsed.host or parsed.query or parsed.fragment:
        raise InvalidArgumentError("a server's URL is http://host:port/path or https://host:port/path, without a query")
    if parsed.auth or "@" in (parsed.path or ""):  # with a slash in it, half of a password would pass for a path
        raise InvalidArgumentError("credentials do not belong into a URL: give token=")
    port = parsed.port or (443 if parsed.scheme == "https" else 80)
    return Place(parsed.scheme, parsed.host, port, (parsed.path or "").rstrip("/"))


def make_context(tls: ClientTls | None, scheme: str) -> ssl.SSLContext | None:
    """What HTTPS is spoken with; raises ``InvalidArgumentError``."""
    if scheme == "http":
        if tls is not None:
            raise InvalidArgumentError("tls= needs a URL that begins with https://")
        return None
    if isinstance(tls, ssl.SSLContext):
        if tls.verify_mode is not ssl.CERT_REQUIRED or not tls.check_hostname:
            log.warning("the context that was given does not verify who the server is: anybody may pass for it")
        return tls
    try:
        context = ssl.create_default_context(cafile=None if tls is None else fspath(tls))
        context.minimum_version = ssl.TLSVersion.TLSv1_2  # whatever the system's settings allow
        return context
    except (OSError, TypeError, ValueError) as error:  # ValueError: a path with a NUL
        raise InvalidArgumentError(f"the authority's file cannot be used: {error}") from error


class StreamLink:
    """One GET whose response never ends. Threads: one reads; ``cut`` from any."""

    def __init__(self, place: Place, context: ssl.SSLContext | None, connect_timeout: float, idle: float) -> None:
        self._place = place
        self._context = context
        self._connect_timeout = connect_timeout
        self._idle = idle
        self._lock = threading.Lock()  # guards the two below: a socket made after cut() is cut at once
        self._socket: socket.socket | None = None
        self._cut = threading.Event()
        self._connection: HTTPConnection | None = None
        self._response: BaseHTTPResponse | None = None

    def open(self, target: str, headers: dict[str, str]) -> BaseHTTPResponse:
        """Connect and send; returns the response, whose body is still to come.

        Raises:
          StoreConnectionError: The server cannot be reached, or does not answer.
          ClosedError: ``cut`` was called.
        """
        try:
            sock = self._connect()
            connection = HTTPConnection(self._place.host, self._place.port, timeout=self._idle)
            connection.sock = sock
            self._connection = connection
            connection.request("GET", target, headers=headers, preload_content=False, decode_content=False)
            self._response = connection.getresponse()
            return self._response
        except (OSError, HTTPError, ValueError) as error:
            raise self._failed(error) from error

    def read(self) -> bytes:
        """What has come; empty at the end. Raises as ``open``."""
        assert self._response is not None
        try:
            return self._response.read1(65536)  # type: ignore[no-any-return, unused-ignore]
        except (OSError, HTTPError, ValueError, AttributeError) as error:
            raise self._failed(error) from error

    def read_rest(self, limit: int) -> bytes:
        """The body of an answer that is no stream."""
        body = b""
        while len(body) < limit and (piece := self.read()):
            body += piece
        return body

    def cut(self) -> None:
        """Wake whoever connects or reads."""
        self._cut.set()
        with self._lock:
            sock = self._socket
        if sock is not None:
            try:
                # Not SSLSocket's own: it would take the TLS state from under the thread that reads.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)
            except (OSError, ValueError):
                pass

    def close(self) -> None:
        """Release the connection. Called by the thread that reads."""
        if self._response is not None:
            self._response.close()
        if self._connection is not None:
            self._connection.close()
        with self._lock:
            sock, self._socket = self._socket, None
        if sock is not None:
            sock.close()

    def _connect(self) -> socket.socket:
        """A socket that speaks TLS already where it should; no step blocks longer than a moment after ``cut``."""
        deadline = time.monotonic() + self._connect_timeout
        failure: OSError = ConnectionError("the name has no address")
        for family, kind, protocol, _, address in socket.getaddrinfo(
            self._place.host.strip("[]"), self._place.port, type=socket.SOCK_STREAM
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
            sock.settimeout(self._idle)
            return sock
        secured = self._context.wrap_socket(
            sock, server_hostname=self._place.host.strip("[]"), do_handshake_on_connect=False
        )
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
        secured.settimeout(self._idle)
        return secured

    def _await(self, sock: socket.socket, event: int, deadline: float) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(sock, event)
            while not self._cut.is_set():
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    raise TimeoutError(f"not connected within {self._connect_timeout:g} s")
                # In steps: a socket that is not connected yet cannot be shut down from another thread.
                if selector.select(min(remaining, 0.1)):
                    return
        raise ConnectionAbortedError("closed")

    def _keep(self, sock: socket.socket) -> socket.socket:
        close_in_children(sock)
        with self._lock:
            self._socket = sock
        if self._cut.is_set():  # cut() has come a moment too early to find it
            raise ConnectionAbortedError("closed")
        return sock

    def _failed(self, error: Exception) -> ClosedError | StoreConnectionError:
        if self._cut.is_set():
            return ClosedError("the event stream was closed")
        return StoreConnectionError(f"{self._place.name}: {describe(error)}")


def describe(error: BaseException) -> str:
    """The innermost reason of a client library's error."""
    first = error.args[0] if error.args else None
    inner = error.__cause__ or (first if isinstance(first, BaseException) else error)
    if isinstance(inner, ssl.SSLCertVerificationError):
        return f"the server's certificate is not accepted ({inner.verify_message})"
    if isinstance(inner, OSError) and inner.strerror:
        return inner.strerror
    return f"{type(inner).__name__}: {inner}" if str(inner) else type(inner).__name__
