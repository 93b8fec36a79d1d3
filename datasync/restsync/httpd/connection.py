"""One connection of the server: its TLS handshake, its requests one after the other, and its end.

Source: contract section 5, C15.
"""

from __future__ import annotations

import logging
import re
import selectors
import socket
import ssl
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import unquote_to_bytes

from datasync.errors import InvalidArgumentError
from datasync.restsync.httpd.http11 import MAX_DRAIN, BadRequest, BodyReader, Gone, Head, Responder, Wire, refusal
from datasync.runtime.sockets import close_in_children
from datasync.runtime.threads import Worker

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

log = logging.getLogger(__name__)

#: Seconds that a refused peer is listened to, so that it reads why.
LINGER = 2.0


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


class Owner(Protocol):
    """What a connection knows of its server."""

    application: WSGIApplication
    limits: Limits
    context: ssl.SSLContext | None

    @property
    def address(self) -> str: ...

    def forget(self, connection: Connection) -> None: ...


class Connection:
    """One peer, and the requests that it sends. Threads: its own, but for the three that end it."""

    def __init__(self, server: Owner, peer: socket.socket, where: Any) -> None:
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
            if hasattr(socket, "TCP_USER_TIMEOUT"):
                # A peer that vanished takes heartbeats into the buffer for hours: what nobody acknowledges ends it.
                patience = int(self._server.limits.write_timeout * 1000)
                self._raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, patience)
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
        self._raw.getpeername()  # a peer that has gone already: wrap_socket() would raise as well, and close nothing
        self._socket = secured = context.wrap_socket(self._raw, server_side=True, do_handshake_on_connect=False)
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
                    raise Gone("the TLS handshake took too long")
        raise Gone("the server closes")

    def _environ(self, head: Head, body: BodyReader) -> WSGIEnvironment:
        target = head.target
        if not target.startswith("/"):  # absolute-form, as proxies send it
            absolute = re.match(r"https?://[^/?]+", target, re.IGNORECASE)
            if absolute is None:
                raise BadRequest(400, "the target is no path")
            target = target[absolute.end() :]
            target = target if target.startswith("/") else "/" + target
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
