"""A small threaded HTTP server for those who have none: one thread per connection, and an end that is prompt.

Thread pools starve when event streams fill them, and most servers wait for open streams when they are to stop; here a
connection is a thread, their number is bounded, and ``close()`` ends the streams first. The TLS handshake is done in
the connection's thread, so that a peer which never finishes it holds up nobody.

Source: STACK of HTTP servers; contract section 5, C15; D47.
"""

from __future__ import annotations

import logging
import selectors
import socket
import socketserver
import ssl
import sys
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

from datasync.errors import InvalidArgumentError, StoreConnectionError
from datasync.restsync.adapter import Adapter
from datasync.restsync.app import Application, wsgi_app
from datasync.restsync.wire import MAX_DRAIN, BadRequest, BodyReader, Gone, Head, Responder, Wire, refusal
from datasync.threads import CLOSE_TIMEOUT, ForkGuard, Worker

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

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

#: Seconds that a refused peer is listened to, so that it reads why.
LINGER = 2.0

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


class Limits:
    """What a connection may take, in seconds, and how many there may be."""

    def __init__(
        self, connections: int, read_timeout: float, body_timeout: float, write_timeout: float, keep_alive: float
    ) -> None:
        self.connections = connections
        self.read_timeout = read_timeout
        self.body_timeout = body_timeout
        self.write_timeout = write_timeout
        self.keep_alive = keep_alive
        for name, number in vars(self).items():
            if not isinstance(number, (int, float)) or number <= 0:
                raise InvalidArgumentError(f"{name} must be a number above 0")


class Server:
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
        self._connections: dict[_Connection, Worker] = {}
        self._closed = False
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
        """Stop: nobody is accepted, streams end, requests under way get *timeout* seconds. The adapter stays open."""
        if self._guard.forked:
            return
        with self._lock:
            if self._closed:
                return
            self._closed = True
            connections = dict(self._connections)
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

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def admit(self, peer: socket.socket, where: Any) -> None:
        """Give a new connection its thread, or turn it away."""
        connection = _Connection(self, peer, where)
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

    def forget(self, connection: _Connection) -> None:
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


class _Connection:
    """One peer, and the requests that it sends. Threads: its own, but for the three that end it."""

    def __init__(self, server: Server, peer: socket.socket, where: Any) -> None:
        self._server = server
        self._raw = peer
        self._peer = where
        self._socket: socket.socket = peer
        self._lock = threading.Lock()  # guards the two below
        self._busy = False
        self._ending = False
        self._thread = 0
        #: Set when nothing of it is left but the end of its thread.
        self.over = threading.Event()

    @property
    def is_current(self) -> bool:
        """True in the connection's own thread."""
        return self._thread == threading.get_ident()

    def run(self, worker: Worker) -> None:
        """Handshake, then one request after the other."""
        self._thread = threading.get_ident()
        try:
            self._raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if self._server.context is not None:
                self._handshake(self._server.context)
            limits = self._server.limits
            wire = Wire(self._socket, limits.read_timeout, limits.write_timeout)
            while self._one_request(wire):
                pass
        except (Gone, OSError, ValueError) as error:
            log.debug("%s: %s", self._peer[0], type(error).__name__)
        finally:
            self._close()
            self._server.forget(self)
            self.over.set()

    def finish_soon(self) -> None:
        """End after the request that is under way; at once when there is none."""
        with self._lock:
            self._ending = True
            busy = self._busy
        if not busy:
            self.cut()

    def cut(self) -> None:
        """End now: whoever reads or writes is woken."""
        try:
            # The plain socket's own: SSLSocket.shutdown would take the TLS state from under the thread that reads.
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
        except (OSError, ValueError):
            pass

    def turn_away(self) -> None:
        """One answer, if there is no TLS to be spoken first, and the end. The accepting thread calls it: no waiting."""
        try:
            self._raw.setblocking(False)
            if self._server.context is None:
                self._raw.send(refusal(503, "too many connections"))
        except OSError:
            pass
        self._raw.close()
        self.over.set()

    def _one_request(self, wire: Wire) -> bool:
        """True when the connection goes on."""
        try:
            head = wire.read_head(self._server.limits.keep_alive)
        except BadRequest as error:
            self._refuse(wire, error)
            return False
        if head is None or not self._begin():
            return False
        body = BodyReader(wire, head, self._server.limits.body_timeout)
        responder = Responder(wire, head, body)
        try:
            self._respond(head, body, responder)
        except BadRequest as error:
            if not responder.started:
                self._refuse(wire, error)
            return False
        keep = responder.keep and body.drain()
        if not body.finished:
            self._linger(None)
        with self._lock:
            self._busy = False
            return keep and not self._ending

    def _respond(self, head: Head, body: BodyReader, responder: Responder) -> None:
        environ = self._environ(head, body)
        pieces = self._server.application(environ, responder.start_response)
        try:
            if isinstance(body.failure, BadRequest) and not responder.started:
                raise body.failure  # says more than what the application made of it
            responder.send(pieces)
        finally:
            close = getattr(pieces, "close", None)
            if close is not None:
                close()

    def _begin(self) -> bool:
        with self._lock:
            self._busy = not self._ending
            return self._busy

    def _refuse(self, wire: Wire, error: BadRequest) -> None:
        log.info("%s: %d, %s", self._peer[0], error.status, error)
        wire.write(refusal(error.status, str(error)))
        self._linger(MAX_DRAIN)

    def _linger(self, budget: int | None) -> None:
        """Say that no more comes, and read on: closing with unread bytes sends RST, which may overtake the answer."""
        socket.socket.shutdown(self._socket, socket.SHUT_WR)
        self._socket.settimeout(LINGER / 5)
        deadline, size = time.monotonic() + LINGER, 0
        while time.monotonic() < deadline and (budget is None or size < budget):
            data = self._socket.recv(65536 if budget is None else 4096)
            if not data:
                return
            size += len(data)

    def _handshake(self, context: ssl.SSLContext) -> None:
        """Speak TLS, all of it within the read timeout, however slowly its bytes come."""
        deadline = time.monotonic() + self._server.limits.read_timeout
        self._socket = secured = context.wrap_socket(self._raw, server_side=True, do_handshake_on_connect=False)
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
                    raise Gone("the TLS handshake took too long")
        raise Gone("the server closes")

    def _environ(self, head: Head, body: BodyReader) -> WSGIEnvironment:
        target = head.target
        if not target.startswith("/"):  # absolute-form, as proxies send it; anything else finds nothing
            target = "/" + target.partition("://")[2].partition("/")[2]
        path, _, query = target.partition("?")
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
            "datasync.peer_gone": self._gone,
        }
        for name, value in head.headers:
            if "_" in name:  # would pass for the header with a hyphen
                continue
            field = name.upper().replace("-", "_")
            if field not in ("CONTENT_TYPE", "CONTENT_LENGTH"):
                field = "HTTP_" + field
            environ[field] = f"{environ[field]}, {value}" if field in environ else value
        return environ

    def _gone(self) -> bool:
        """True when the peer has ended the connection. Called by the connection's thread, between two writes."""
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(self._socket, selectors.EVENT_READ)
                if not selector.select(0):
                    return False
            # The plain socket's own: what TLS would make of it is not asked.
            return not socket.socket.recv(self._socket, 1, socket.MSG_PEEK)
        except (OSError, ValueError):
            return True

    def _close(self) -> None:
        try:
            self._socket.close()
        finally:
            self._raw.close()


def _split(address: str | tuple[str, int]) -> tuple[str, int]:
    if isinstance(address, tuple):
        host, port = address[0], str(address[1])
    elif isinstance(address, str):
        host, _, port = address.rpartition(":")
    else:
        raise InvalidArgumentError(f"an address is host:port, not {type(address).__name__}")
    host = host.strip("[]")
    if not host or not (port.isascii() and port.isdigit() and int(port) < 65536):
        raise InvalidArgumentError(f"an address is host:port, not {address!r}")
    return host, int(port)


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


def _context(tls: ServerTls | None) -> ssl.SSLContext | None:
    if tls is None or isinstance(tls, ssl.SSLContext):
        return tls
    if not isinstance(tls, tuple) or len(tls) not in (2, 3):
        raise InvalidArgumentError("tls is an ssl.SSLContext, or (certificate, key) files, or those and an authority")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(tls[0], tls[1])
        if len(tls) == 3:
            context.load_verify_locations(tls[2])
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise InvalidArgumentError(f"the TLS files {', '.join(map(str, tls))} cannot be used: {error}") from error
    return context
