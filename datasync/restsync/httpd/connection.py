"""One connection of the server: the TLS handshake, one request after the other, and the end.

Source: contract C15.
"""

from __future__ import annotations

import re
import selectors
import socket
import ssl
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from urllib.parse import unquote_to_bytes

from datasync.restsync.httpd.http11 import (
    MAX_DRAIN,
    BadRequest,
    BodyReader,
    BufferedSocket,
    PeerGone,
    RequestHead,
    ResponseWriter,
    refusal,
)
from datasync.runtime.logs import LimitedLog, get_logger
from datasync.runtime.sockets import close_in_children, wrap_tls
from datasync.runtime.threads import Flag, Worker

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

log = get_logger(__name__)
limited = LimitedLog(log)  # for lines that strangers can cause

_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")

#: Seconds that the server reads on after an error response, so that the client receives it.
LINGER = 2.0


class ConnectionLimits(NamedTuple):
    """The number of connections, and the timeouts of each in seconds."""

    #: At most, where the descriptors of the process allow it. For one more, the one without a request for longest ends.
    connections: int = 1024
    #: For a whole head, and for a TLS handshake.
    read_timeout: float = 10.0
    #: For a whole body.
    body_timeout: float = 60.0
    #: For the client to accept a chunk of a response.
    write_timeout: float = 20.0
    #: For a connection without a request.
    keep_alive: float = 60.0


#: The limits unless others are given.
DEFAULT_LIMITS = ConnectionLimits()


class ConnectionOwner(Protocol):
    """The part of the server that a connection uses."""

    application: WSGIApplication
    limits: ConnectionLimits
    context: ssl.SSLContext | None

    @property
    def address(self) -> str: ...

    def forget(self, connection: HttpConnection) -> None: ...


class HttpConnection:
    """One client and its requests. Threads: its own; ``finish_soon``, ``cut`` and ``refuse`` from any."""

    def __init__(self, server: ConnectionOwner, peer: socket.socket, address: Any) -> None:
        self._server = server
        self._peer = address
        self._socket = peer
        self._lock = threading.Lock()  # guards _busy, _ending and idle_since
        self._busy = False
        self._ending = False
        self._thread = 0
        #: Since when the connection has had no whole request, on the monotonic clock.
        self.idle_since = time.monotonic()
        #: Set when the connection is closed and only its thread has to end.
        self.over = Flag()

    @property
    def is_current(self) -> bool:
        """True in the connection's own thread."""
        return self._thread == threading.get_ident()

    def run(self, worker: Worker) -> None:
        """Serve the connection: the handshake, then one request after the other."""
        self._thread = threading.get_ident()
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if hasattr(socket, "TCP_USER_TIMEOUT"):
                # The send buffer takes heartbeats for a vanished client for hours; unacknowledged data ends that.
                milliseconds = int(self._server.limits.write_timeout * 1000)
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
            if self._server.context is not None:
                self._handshake(self._server.context)
            limits = self._server.limits
            stream = BufferedSocket(self._socket, limits.read_timeout, limits.write_timeout)
            while self._one_request(stream):
                pass
        except (PeerGone, OSError, ValueError) as error:
            log.debug("%s: %s", self._peer[0], type(error).__name__)
        finally:
            self._socket.close()
            self._server.forget(self)
            self.over.set()

    def finish_soon(self) -> None:
        """Close the connection after the current request; at once when there is none."""
        with self._lock:
            self._ending = True
            busy = self._busy
        if not busy:
            self.cut()

    def end_if_idle(self) -> bool:
        """Disconnect if there is no request. Returns False while there is one."""
        with self._lock:
            if self._busy or self._ending:
                return False
            self._ending = True
        self.cut()
        return True

    def cut(self) -> None:
        """Disconnect now, and wake the thread that reads or writes."""
        with suppress(OSError, ValueError):
            # Not SSLSocket.shutdown: it drops the TLS state while another thread may read with it.
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def refuse(self) -> None:
        """Send 503 where no TLS handshake comes first, and close. Does not block: the accepting thread calls it."""
        with suppress(OSError):
            self._socket.setblocking(False)
            if self._server.context is None:
                self._socket.send(refusal(503, "too many connections"))
        self._socket.close()
        self.over.set()

    def _one_request(self, stream: BufferedSocket) -> bool:
        """Serve one request. Returns True when the connection stays open."""
        try:
            head = stream.read_head(self._server.limits.keep_alive)
        except BadRequest as error:
            self._reject(stream, error)
            return False
        if head is None or not self._begin():
            return False
        body = BodyReader(stream, head, self._server.limits.body_timeout)
        writer = ResponseWriter(stream, head, body)
        try:
            self._respond(head, body, writer)
        except BadRequest as error:
            if not writer.started:
                self._reject(stream, error)
            return False
        keep = writer.keep and body.drain()
        if not body.finished:
            self._linger(None)
        with self._lock:
            self._busy = False
            self.idle_since = time.monotonic()
            return keep and not self._ending

    def _respond(self, head: RequestHead, body: BodyReader, writer: ResponseWriter) -> None:
        environ = self._environ(head, body)
        chunks = self._server.application(environ, writer.start_response)
        try:
            if isinstance(body.failure, BadRequest) and not writer.started:
                raise body.failure  # more specific than the response of the application
            writer.send(chunks)
        finally:
            close = getattr(chunks, "close", None)
            if close is not None:
                close()

    def _begin(self) -> bool:
        with self._lock:
            self._busy = not self._ending
            return self._busy

    def _reject(self, stream: BufferedSocket, error: BadRequest) -> None:
        stream.write(refusal(error.status, str(error)))
        limited.warning("%s: rejected a request with %d: %s", self._peer[0], error.status, error)
        self._linger(MAX_DRAIN)

    def _linger(self, budget: int | None) -> None:
        """End the output, and read on: closing with unread bytes sends RST, which may overtake the response."""
        socket.socket.shutdown(self._socket, socket.SHUT_WR)
        self._socket.settimeout(LINGER / 5)
        deadline, size = time.monotonic() + LINGER, 0
        while time.monotonic() < deadline and (budget is None or size < budget):
            data = self._socket.recv(65536 if budget is None else 4096)
            if not data:
                return
            size += len(data)

    def _handshake(self, context: ssl.SSLContext) -> None:
        """Complete the TLS handshake within the read timeout, however slowly its bytes arrive."""
        deadline = time.monotonic() + self._server.limits.read_timeout
        self._socket.getpeername()  # raises for a disconnected client, which has no handshake
        self._socket = secured = wrap_tls(context, self._socket, server_side=True, do_handshake_on_connect=False)
        close_in_children(secured)
        secured.setblocking(False)
        with selectors.DefaultSelector() as selector:
            selector.register(secured, selectors.EVENT_READ)
            while not self._ending:
                try:
                    secured.do_handshake()
                    return
                except ssl.SSLWantReadError:
                    wanted = selectors.EVENT_READ
                except ssl.SSLWantWriteError:
                    wanted = selectors.EVENT_WRITE
                selector.modify(secured, wanted)
                if not selector.select(max(deadline - time.monotonic(), 0)):
                    raise PeerGone("the TLS handshake took too long")
        raise PeerGone("the server is closing")

    def _environ(self, head: RequestHead, body: BodyReader) -> WSGIEnvironment:
        target = head.target
        if not target.startswith("/"):  # absolute-form, as proxies send it
            absolute = re.match(r"https?://[^/?]+", target, re.IGNORECASE)
            if absolute is None:
                raise BadRequest(400, "the request target is not a path")
            target = target[absolute.end() :]
            target = target if target.startswith("/") else "/" + target
        path, _, query = target.partition("?")
        if _BAD_ESCAPE.search(target):  # a proxy may read it as another path
            raise BadRequest(400, "the request target has a % without two hex digits")
        host, _, port = self._server.address.rpartition(":")
        environ: dict[str, Any] = {
            "REQUEST_METHOD": head.method,
            "SCRIPT_NAME": "",
            "PATH_INFO": unquote_to_bytes(path).decode("latin-1"),
            "QUERY_STRING": query,
            "SERVER_NAME": host,
            "SERVER_PORT": port,
            "SERVER_PROTOCOL": head.version,
            "REMOTE_ADDR": self._peer[0],
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "https" if self._server.context else "http",
            "wsgi.input": body,
            "wsgi.input_terminated": True,
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
            "datasync.peer_gone": self._peer_gone,
        }
        for name, value in head.headers:
            if "_" in name:  # CGI names cannot distinguish it from the header with a hyphen
                continue
            field = name.upper().replace("-", "_")
            if field not in ("CONTENT_TYPE", "CONTENT_LENGTH"):
                field = "HTTP_" + field
            environ[field] = f"{environ[field]}, {value}" if field in environ else value
        return environ

    def _peer_gone(self) -> bool:
        """Return True when the client has disconnected. Called by the connection's thread, between two writes."""
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(self._socket, selectors.EVENT_READ)
                if not selector.select(0):
                    return False
            # Peek below TLS: the end of the TCP connection is enough.
            return not socket.socket.recv(self._socket, 1, socket.MSG_PEEK)
        except (OSError, ValueError):
            return True
