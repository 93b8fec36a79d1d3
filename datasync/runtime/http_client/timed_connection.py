"""HTTP connections whose every step ends at a deadline: connecting, the TLS handshake, sending, headers, and body.

The timeouts of urllib3 and of sockets are for each read. A server that sends a byte now and then would hold a call for
as long as it likes.

Source: contract C15, C23.
"""

from __future__ import annotations

import io
import math
import os
import selectors
import socket
import ssl
import threading
import time
from collections.abc import Callable
from functools import partial
from http.client import HTTPResponse
from typing import Any, NamedTuple, TypeVar

from urllib3.connection import HTTPConnection
from urllib3.exceptions import HTTPError
from urllib3.response import BaseHTTPResponse

from datasync.runtime.sockets import close_in_children, wrap_tls
from datasync.runtime.threads import step_of

T = TypeVar("T")

#: Bytes of one send.
CHUNK = 64 * 1024
#: Seconds between two looks at whether a connection attempt was cut.
CUT_INTERVAL = 0.1


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


class CallDeadline(threading.local):
    """The time at which the current call of this thread must end, and whether a byte of its request was sent."""

    at = math.inf
    sent = False

    def start(self, seconds: float) -> None:
        """Begin a call that may take *seconds*."""
        self.at = time.monotonic() + seconds
        self.sent = False

    def remaining(self) -> float:
        """Return the seconds that are left. Raises ``TimeoutError`` when there are none."""
        left = self.at - time.monotonic()
        if left <= 0:
            raise TimeoutError("the time of the call is over")
        return left


class NotConnectedError(HTTPError):
    """The connection did not come up, so nothing was sent; the cause says why."""


class TimedConnection(HTTPConnection):
    """A connection, plain or TLS, that keeps the deadline of the calling thread.

    Args:
      connect: Returns a connected socket, after the TLS handshake.
    """

    def __init__(
        self, host: str, port: int, *, deadline: CallDeadline, connect: Callable[[], socket.socket], **options: Any
    ) -> None:
        super().__init__(host.strip("[]"), port, **options)
        self._deadline = deadline
        self._open = connect
        self.response_class = partial(_TimedResponse, deadline)  # type: ignore[assignment]

    def connect(self) -> None:
        try:
            self.sock = self._open()
        except (OSError, ValueError) as error:
            raise NotConnectedError(str(error)) from error

    def send(self, data: Any) -> None:
        """Send all of *data*, which is bytes."""
        if self.sock is None:
            self.connect()
        assert self.sock is not None
        rest = memoryview(data)
        while rest:
            self._deadline.remaining()
            self._deadline.sent = True  # from here on the server may have it
            rest = rest[_in_steps(self.sock, self._deadline, partial(self.sock.send, rest[:CHUNK])) :]

    def getresponse(self) -> BaseHTTPResponse:  # type: ignore[override]
        self.timeout = self._deadline.remaining()
        return super().getresponse()


class _TimedResponse(HTTPResponse):
    def __init__(self, deadline: CallDeadline, sock: socket.socket, *arguments: Any, **options: Any) -> None:
        super().__init__(sock, *arguments, **options)
        self.fp.close()
        self.fp = io.BufferedReader(_TimedReader(sock, deadline), CHUNK)


class _TimedReader(io.RawIOBase):
    """Reads from a socket, each time with what is left until the deadline."""

    def __init__(self, sock: socket.socket, deadline: CallDeadline) -> None:
        self._socket = sock
        self._file = sock.makefile("rb", buffering=0)  # keeps the socket open as long as this is
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        # Not by the file, which gives up after the first step without data.
        return _in_steps(self._socket, self._deadline, partial(self._socket.recv_into, buffer))

    def close(self) -> None:
        self._file.close()
        super().close()


def _in_steps(sock: socket.socket, deadline: CallDeadline, call: Callable[[], T]) -> T:
    """Return the result of *call*, of *sock*, before the deadline; in the main thread it waits as ``step_of`` says.

    To await the descriptor first would not do: over TLS, what comes may be no data, and the call itself would wait.
    """
    while True:
        left = deadline.remaining()
        step = step_of(left)
        sock.settimeout(step)
        try:
            return call()
        except TimeoutError as error:
            if step == left or error.errno is not None:  # one with a number is of the system: the connection is lost
                raise


def open_socket(
    address: ServerAddress,
    context: ssl.SSLContext | None,
    until: float,
    *,
    keep: Callable[[socket.socket], object] = close_in_children,
    is_cut: Callable[[], bool] = bool,
) -> socket.socket:
    """Return a socket that is connected to *address*, after the TLS handshake.

    Args:
      until: Deadline on the monotonic clock. The resolution of the name has its own, in the system.
      keep: Called with every socket that becomes connected; it may raise.
      is_cut: While it returns False the attempt goes on.

    Raises:
      OSError: Not connected, for whatever reason.
    """
    failure: OSError = ConnectionError("the host name has no address")
    host = address.host.strip("[]")
    for family, kind, protocol, _, place in socket.getaddrinfo(host, address.port, type=socket.SOCK_STREAM):
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setblocking(False)
            sock.connect_ex(place)
            _await(sock, selectors.EVENT_WRITE, until, is_cut)
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                raise OSError(code, os.strerror(code))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            keep(sock)
            return sock if context is None else _secure(sock, context, host, until, keep, is_cut)
        except OSError as error:
            sock.close()
            failure = error
    raise failure


def _secure(
    sock: socket.socket,
    context: ssl.SSLContext,
    host: str,
    until: float,
    keep: Callable[[socket.socket], object],
    is_cut: Callable[[], bool],
) -> socket.socket:
    secured = wrap_tls(context, sock, server_hostname=host, do_handshake_on_connect=False)
    try:
        keep(secured)
        secured.setblocking(False)
        while True:
            try:
                secured.do_handshake()
                return secured
            except ssl.SSLWantReadError:
                _await(secured, selectors.EVENT_READ, until, is_cut)
            except ssl.SSLWantWriteError:
                _await(secured, selectors.EVENT_WRITE, until, is_cut)
    except OSError:
        secured.close()
        raise


def _await(sock: socket.socket, event: int, until: float, is_cut: Callable[[], bool]) -> None:
    with selectors.DefaultSelector() as selector:
        selector.register(sock, event)
        while not is_cut():
            remaining = until - time.monotonic()
            if remaining <= 0:
                raise TimeoutError("not connected in time")
            # In short steps: another thread cannot shut down a socket that is not connected yet.
            if selector.select(min(remaining, CUT_INTERVAL)):
                return
    raise ConnectionAbortedError("closed")
