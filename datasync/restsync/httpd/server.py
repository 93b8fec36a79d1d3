"""A small threaded HTTP server for those who have none: one thread per connection, and an end that is prompt.

Thread pools starve when event streams fill them, and most servers wait for open streams when they are to stop; here a
connection is a thread, their number is bounded, and ``close()`` ends the streams first. The TLS handshake is done in
the connection's thread, so that a peer which never finishes it holds up nobody.

Source: contract section 5, C15; D47.
"""

from __future__ import annotations

import logging
import selectors
import socket
import socketserver
import ssl
import threading
import time
from typing import TYPE_CHECKING, Any

from datasync.errors import InvalidArgumentError, StoreConnectionError
from datasync.restsync.app.adapter import Adapter
from datasync.restsync.app.application import Application, wsgi_app
from datasync.restsync.httpd.connection import Connection, Limits
from datasync.runtime.closing import Closable
from datasync.runtime.sockets import close_in_children
from datasync.runtime.threads import CLOSE_TIMEOUT, ForkGuard, Worker

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

log = logging.getLogger(__name__)

#: Connections at once; more get 503.
MAX_CONNECTIONS = 1024
#: Seconds for a whole head, and for a TLS handshake.
READ_TIMEOUT = 10.0
#: Seconds for a whole body.
BODY_TIMEOUT = 60.0
#: Seconds that a peer may take nothing of what is sent.
WRITE_TIMEOUT = 20.0
#: Seconds that a connection may wait for its next request.
KEEP_ALIVE = 60.0
#: Seconds that requests under way may take to end when the server closes.
GRACE = 5.0

#: A context, or the files (certificate chain, key), or (chain, key, authority of the clients' certificates).
ServerTls = ssl.SSLContext | tuple[str, str] | tuple[str, str, str]


def serve(
    address: str | tuple[str, int],
    adapter: Adapter | Application,
    *,
    tls: ServerTls | None = None,
    max_connections: int = MAX_CONNECTIONS,
    read_timeout: float = READ_TIMEOUT,
    body_timeout: float = BODY_TIMEOUT,
    write_timeout: float = WRITE_TIMEOUT,
    keep_alive: float = KEEP_ALIVE,
    **options: Any,
) -> Server:
    """Serve *adapter* on *address* and return at once.

    Args:
      address: ``host:port`` or a pair; port 0 takes a free one. There is no default: who listens where is a decision.
      adapter: It stays open when the server closes. An ``Application`` made before is served as it is.
      tls: Speak HTTPS.
      max_connections: More get 503.
      read_timeout, body_timeout, write_timeout, keep_alive: Seconds for a head, a body, a peer that takes nothing, and
        a connection without a request.
      options: As for ``wsgi_app(...)``: ``token``, ``page``, ``show_values``, …

    Raises:
      InvalidArgumentError: An argument cannot be.
      StoreConnectionError: The address cannot be listened on.
    """
    host, port = _split(address)
    if isinstance(adapter, Application):
        if options:
            raise InvalidArgumentError(f"{', '.join(options)}: give it to wsgi_app(...) instead")
        application = adapter
    else:
        application = wsgi_app(adapter, **options)
    if not _is_loopback(host) and not application.guarded:
        log.warning("everybody who reaches %s:%d may read and write: give serve(...) a token", host, port)
    limits = Limits(max_connections, read_timeout, body_timeout, write_timeout, keep_alive)
    server = Server((host, port), application, _context(tls), limits)
    server.start()
    return server


class Server(Closable):
    """A running server; made by ``serve(...)``. Threads: any; a context manager that closes it."""

    def __init__(
        self,
        address: tuple[str, int],
        application: WSGIApplication,
        context: ssl.SSLContext | None,
        limits: Limits,
    ) -> None:
        self.application = application
        self.limits = limits
        self.context = context
        self._guard = ForkGuard("the REST server")
        self._lock = threading.Lock()  # guards _connections and _closed
        self._connections: dict[Connection, Worker] = {}
        self._closed = False
        self._through = threading.Event()  # set when close() is
        try:
            self._listener = _Listener(address, self)
        except OSError as error:
            host, port = address
            raise StoreConnectionError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
        self._acceptor = Worker(f"restsync-accept-{self.address}", self._accept, wake=self._listener.wake)

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self._listener.server_address[1])

    @property
    def address(self) -> str:
        """``host:port``."""
        host = str(self._listener.server_address[0])
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """Where clients find it."""
        return f"{'https' if self.context else 'http'}://{self.address}"

    @property
    def connections(self) -> int:
        """Connections that are open."""
        return len(self._connections)

    def start(self) -> None:
        """Accept connections; done by ``serve``."""
        self._guard.check()
        self._acceptor.start()
        log.info("listening on %s", self.url)

    def close(self, timeout: float = GRACE) -> None:
        """Stop: nobody is accepted, streams end, requests under way get *timeout* seconds. The adapter stays open.

        Whoever calls it while another one does waits for that to be through, but for requests of this server.
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
                self._through.set()
        elif not any(connection.is_current for connection in connections):  # who closes waits for that one
            self._through.wait(timeout + CLOSE_TIMEOUT)

    def _end(self, connections: dict[Connection, Worker], timeout: float) -> None:
        self._acceptor.close()
        self._listener.server_close()
        end = getattr(self.application, "close", None)
        if end is not None:
            end()
        for connection in connections:
            connection.finish_soon()
        deadline = time.monotonic() + timeout
        for connection, worker in connections.items():
            if connection.is_current:  # closed from within a request: it ends when it is answered
                continue
            if not connection.over.wait(max(deadline - time.monotonic(), 0)):
                connection.cut()
            worker.close(CLOSE_TIMEOUT)
        log.info("%s is closed; %d connection(s) were open", self.url, len(connections))

    def admit(self, peer: socket.socket, where: Any) -> None:
        """Give a new connection its thread, or turn it away."""
        close_in_children(peer)
        connection = Connection(self, peer, where)
        worker = Worker(f"restsync-connection-{where[0]}:{where[1]}", connection.run, wake=connection.cut)
        with self._lock:
            refused = self._closed or len(self._connections) >= self.limits.connections
            if not refused:
                self._connections[connection] = worker
        if refused:
            connection.turn_away()
            return
        try:
            worker.start()
        except RuntimeError:  # the system has no thread left
            self.forget(connection)
            connection.turn_away()

    def forget(self, connection: Connection) -> None:
        """A connection has ended."""
        with self._lock:
            self._connections.pop(connection, None)

    def _accept(self, worker: Worker) -> None:
        self._listener.follow(worker)


class _Listener(socketserver.TCPServer):
    """The listening socket; what socketserver would do with threads of its own is left to ``Server``."""

    allow_reuse_address = True
    request_queue_size = 1024

    def __init__(self, address: tuple[str, int], owner: Server) -> None:
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        self._owner = owner
        self._bell, self._button = socket.socketpair()
        super().__init__(address, socketserver.BaseRequestHandler)
        self.socket.setblocking(False)
        for one in (self.socket, self._bell, self._button):
            close_in_children(one)

    def wake(self) -> None:
        """Let ``follow`` look at ``stopping``."""
        try:
            self._button.send(b"x")
        except OSError:
            pass

    def follow(self, worker: Worker) -> None:
        """Accept until the worker is to stop."""
        with selectors.DefaultSelector() as selector:
            selector.register(self.socket, selectors.EVENT_READ)
            selector.register(self._bell, selectors.EVENT_READ)
            while not worker.stopping.is_set():
                selector.select()
                if worker.stopping.is_set():
                    return
                try:
                    peer, where = self.socket.accept()
                except BlockingIOError:
                    continue
                except OSError as error:  # no descriptor left, most likely: some will be free again
                    log.warning("cannot accept a connection: %s", error)
                    worker.stopping.wait(0.05)
                    continue
                self._owner.admit(peer, where)

    def server_close(self) -> None:
        super().server_close()
        self._bell.close()
        self._button.close()


def _split(address: str | tuple[str, int]) -> tuple[str, int]:
    if isinstance(address, tuple):
        host, port = address[0], str(address[1])
    elif isinstance(address, str):
        host, _, port = address.rpartition(":")
    else:
        raise InvalidArgumentError(f"an address is host:port, not {type(address).__name__}")
    host = host.strip("[]")
    if not host or not (port.isascii() and port.isdigit() and len(port) < 6 and int(port) < 65536):
        raise InvalidArgumentError(f"an address is host:port, not {str(address)[:80]!r}")
    return host, int(port)


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


def _context(tls: ServerTls | None) -> ssl.SSLContext | None:
    if tls is None or isinstance(tls, ssl.SSLContext):
        return tls
    if not isinstance(tls, tuple) or len(tls) not in (2, 3):
        raise InvalidArgumentError("tls is an ssl.SSLContext, or (certificate, key) files, or those and an authority")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # whatever the system's settings allow
    try:
        # A key with a password is an error: without this the terminal would be asked for it.
        context.load_cert_chain(tls[0], tls[1], password="")
        if len(tls) == 3:
            context.load_verify_locations(tls[2])
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ValueError, TypeError) as error:  # ssl.SSLError is an OSError
        raise InvalidArgumentError(f"the TLS files {', '.join(map(str, tls))} cannot be used: {error}") from error
    return context
