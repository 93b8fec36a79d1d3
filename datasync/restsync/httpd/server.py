"""A small threaded HTTP server for any WSGI application: one thread per connection, and a prompt ``close()``.

Event streams exhaust a thread pool, and most servers wait for open streams before they stop. This server gives each
connection a thread, bounds their number by what the limit of descriptors leaves, and ends the streams first when it
closes. The TLS handshake runs in the connection's thread, so that a client that never finishes it blocks no other one.

Source: contract C15.
"""

from __future__ import annotations

import selectors
import socket
import socketserver
import ssl
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from datasync.errors import InvalidArgumentError, StoreConnectionError
from datasync.restsync.arguments import check_numbers
from datasync.restsync.httpd.connection import ConnectionLimits, HttpConnection
from datasync.runtime.closing import Closable
from datasync.runtime.logs import LimitedLog, get_logger
from datasync.runtime.sockets import close_in_children, connection_limit
from datasync.runtime.threads import CLOSE_TIMEOUT, Flag, ForkGuard, Worker

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

log = get_logger(__name__)
limited = LimitedLog(log)  # for lines that strangers can cause

#: Seconds that pending requests may take when the server closes.
GRACE = 5.0
#: Seconds that a connection may take to end in favour of a new one.
ROOM_TIMEOUT = 1.0

#: A context, or files: (certificate chain, key), or (chain, key, CA of the client certificates).
ServerTls = ssl.SSLContext | tuple[str, str] | tuple[str, str, str]


class Server(Closable):
    """A listening server; ``serve(...)`` makes and starts one.

    Args:
      address: Host and port; port 0 takes a free port.
      application: Any WSGI application. Its ``close()``, if it has one, is called when the server closes, and must end
        the streams of responses.
      context: Context for TLS; None for plain HTTP.
      limits: Limits of every connection, and of their number.

    Raises:
      InvalidArgumentError: A limit is not above 0.
      StoreConnectionError: The server cannot listen on the address.

    Threads: any.
    """

    def __init__(
        self,
        address: tuple[str, int],
        application: WSGIApplication,
        context: ssl.SSLContext | None,
        limits: ConnectionLimits,
    ) -> None:
        check_numbers(limits._asdict())
        self.application = application
        self.limits = limits
        self.context = context
        self._guard = ForkGuard("the REST server")
        self._lock = threading.Lock()  # guards _connections and _closed
        self._connections: dict[HttpConnection, Worker] = {}
        self._closed = False
        self._ended = Flag()  # set when close() has finished
        #: Connections at once: what the limits say, or less where the process has few descriptors.
        self.max_connections = connection_limit(int(limits.connections))
        try:
            self._listener = _Listener(address, self)
        except OSError as error:
            host, port = address
            raise StoreConnectionError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
        self._acceptor = Worker(f"restsync-accept-{self.address}", self._listener.run, wake=self._listener.wake)

    @property
    def port(self) -> int:
        """Port on which the server listens."""
        return int(self._listener.server_address[1])

    @property
    def address(self) -> str:
        """``host:port``."""
        host = str(self._listener.server_address[0])
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """URL of the server."""
        return f"{'https' if self.context else 'http'}://{self.address}"

    @property
    def connections(self) -> int:
        """Number of open connections."""
        return len(self._connections)

    def start(self) -> None:
        """Accept connections; ``serve`` calls this."""
        self._guard.check()
        self._acceptor.start()
        log.info("listening on %s, for up to %d connections", self.url, self.max_connections)

    def close(self, timeout: float = GRACE) -> None:
        """Stop: accept no connection, end the streams, and give pending requests *timeout* seconds.

        A concurrent second call waits for the first, except from a request of this server.
        """
        if self._guard.forked:
            return
        with self._lock:
            first, self._closed = not self._closed, True
            connections = dict(self._connections)
        if first:
            try:
                self._end(connections, timeout)
            finally:
                self._ended.set()
        elif not any(connection.is_current for connection in connections):  # the closing thread waits for that request
            self._ended.wait(timeout + CLOSE_TIMEOUT)

    def _end(self, connections: dict[HttpConnection, Worker], timeout: float) -> None:
        self._acceptor.close()
        self._listener.server_close()
        close = getattr(self.application, "close", None)
        if close is not None:
            close()
        for connection in connections:
            connection.finish_soon()
        deadline = time.monotonic() + timeout
        for connection, worker in connections.items():
            if connection.is_current:  # closed from within this request: the connection ends after its response
                continue
            if not connection.over.wait(max(deadline - time.monotonic(), 0)):
                connection.cut()
            worker.close(CLOSE_TIMEOUT)
        log.info("closed %s; connections that were open: %d", self.url, len(connections))

    def admit(self, peer: socket.socket, address: Any) -> None:
        """Start a thread for a new connection. If there are too many, end the one that is idle for longest."""
        close_in_children(peer)
        connection = HttpConnection(self, peer, address)
        worker = Worker(f"restsync-connection-{address[0]}:{address[1]}", connection.run, wake=connection.cut)
        if len(self._connections) >= self.max_connections:
            self.make_room()
        with self._lock:
            refused = self._closed or len(self._connections) >= self.max_connections
            if not refused:
                self._connections[connection] = worker
        if refused:
            connection.refuse()
            return
        try:
            worker.start()
        except RuntimeError:  # the system cannot start another thread
            self.forget(connection)
            connection.refuse()

    def make_room(self) -> bool:
        """End the connection that is without a request for longest. Returns False if each has one, or none ended."""
        with self._lock:
            connections = list(self._connections)
        for connection in sorted(connections, key=lambda one: one.idle_since):
            if connection.end_if_idle():
                limited.warning(
                    "%s has %d connections, its limit: closed the one that was idle for longest",
                    self.address,
                    len(connections),
                )
                return connection.over.wait(ROOM_TIMEOUT)
        return False

    def forget(self, connection: HttpConnection) -> None:
        """Remove a connection that has ended."""
        with self._lock:
            self._connections.pop(connection, None)


class _Listener(socketserver.TCPServer):
    """The listening socket. ``Server`` starts the threads, and not ``socketserver``."""

    allow_reuse_address = True
    request_queue_size = 1024

    def __init__(self, address: tuple[str, int], server: Server) -> None:
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        self._server = server
        self._wake_receiver, self._wake_sender = socket.socketpair()
        super().__init__(address, socketserver.BaseRequestHandler)
        self.socket.setblocking(False)
        for one in (self.socket, self._wake_receiver, self._wake_sender):
            close_in_children(one)

    def wake(self) -> None:
        """Let ``run`` check ``stopping``."""
        with suppress(OSError):
            self._wake_sender.send(b"x")

    def run(self, worker: Worker) -> None:
        """Accept connections until *worker* is stopping."""
        with selectors.DefaultSelector() as selector:
            selector.register(self.socket, selectors.EVENT_READ)
            selector.register(self._wake_receiver, selectors.EVENT_READ)
            while not worker.stopping.is_set():
                selector.select()
                if worker.stopping.is_set():
                    return
                try:
                    peer, address = self.socket.accept()
                except BlockingIOError:
                    continue
                except OSError as error:  # most likely no descriptor is left
                    limited.warning("cannot accept a connection: %s", error.strerror)
                    if not self._server.make_room():
                        worker.stopping.wait(0.05)
                    continue
                self._server.admit(peer, address)

    def server_close(self) -> None:
        super().server_close()
        self._wake_receiver.close()
        self._wake_sender.close()


def make_server_context(tls: ServerTls | None) -> ssl.SSLContext | None:
    """Return the context for *tls*; None for plain HTTP. Raises ``InvalidArgumentError``."""
    if tls is None or isinstance(tls, ssl.SSLContext):
        return tls
    if not isinstance(tls, tuple) or len(tls) not in (2, 3):
        raise InvalidArgumentError(
            "tls must be an ssl.SSLContext, or files: (certificate, key) or (certificate, key, CA)"
        )
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # even where the system allows less
    try:
        # Without a password, OpenSSL would ask the terminal for the one of an encrypted key.
        context.load_cert_chain(tls[0], tls[1], password="")
        if len(tls) == 3:
            context.load_verify_locations(tls[2])
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ValueError, TypeError) as error:  # ssl.SSLError is an OSError
        raise InvalidArgumentError(f"cannot load the TLS files {', '.join(map(str, tls))}: {error}") from error
    return context
