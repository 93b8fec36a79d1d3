"""``serve(...)``: an adapter, the application over it, and a server that listens on a port."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

from datasync.errors import InvalidArgumentError
from datasync.restsync.app.adapter import Adapter
from datasync.restsync.app.application import Application
from datasync.restsync.app.host_check import LOOPBACK
from datasync.restsync.app.store_adapter import StoreTransport
from datasync.restsync.httpd.connection import DEFAULT_LIMITS, ConnectionLimits
from datasync.restsync.httpd.server import Server, ServerTls, make_server_context
from datasync.runtime.logs import get_logger

log = get_logger(__name__)


def serve(
    address: str | tuple[str, int],
    adapter: Adapter | Application | StoreTransport,
    *,
    tls: ServerTls | None = None,
    max_connections: int = DEFAULT_LIMITS.connections,
    read_timeout: float = DEFAULT_LIMITS.read_timeout,
    body_timeout: float = DEFAULT_LIMITS.body_timeout,
    write_timeout: float = DEFAULT_LIMITS.write_timeout,
    keep_alive: float = DEFAULT_LIMITS.keep_alive,
    **options: Any,
) -> Server:
    """Serve *adapter* on *address*, and return at once.

    Args:
      address: ``host:port`` or a pair; port 0 takes a free port. There is no default address.
      adapter: As for ``Application``; it stays open when the server closes. An ``Application`` is served with the
        options that it has. On loopback and without a token, requests must be addressed to ``localhost``, to an address
        of loopback, to the host of *address*, or to one of ``allowed_hosts``.
      tls: Certificate for HTTPS: a context, or files.
      max_connections: Connections at once; one more gets 503.
      read_timeout, body_timeout, write_timeout, keep_alive: Seconds for a whole head, for a whole body, for the client
        to accept a chunk of a response, and for a connection without a request.
      options: Arguments of ``Application``: ``token``, ``allowed_hosts``, ``page``, ``show_values``, …

    Raises:
      InvalidArgumentError: An argument is not valid.
      StoreConnectionError: The server cannot listen on the address.
    """
    host, port = split_address(address)
    if isinstance(adapter, Application):
        if options:
            raise InvalidArgumentError(f"{', '.join(options)}: pass these options to wsgi_app(...) instead")
        application = adapter
    else:
        application = Application(adapter, **options)
    limits = ConnectionLimits(max_connections, read_timeout, body_timeout, write_timeout, keep_alive)
    server = Server((host, port), application, make_server_context(tls), limits)
    try:
        bound = server.address.rpartition(":")[0].strip("[]")
        loopback = ip_address(bound.partition("%")[0]).is_loopback
        if application.hosts.limited or (loopback and not application.guarded):
            application.hosts = application.hosts.plus(*LOOPBACK, host, bound)
        server.start()
        if not application.guarded:
            whom = "every program of this machine" if loopback else "everyone"
            text = "%s accepts reads and writes from %s: set a token"
            log.warning(text, server.address, whom)
    except BaseException:
        server.close()
        raise
    return server


def split_address(address: str | tuple[str, int]) -> tuple[str, int]:
    """Return host and port of *address*. Raises ``InvalidArgumentError``."""
    if isinstance(address, tuple):
        host, port = address[0], str(address[1])
    elif isinstance(address, str):
        host, _, port = address.rpartition(":")
    else:
        raise InvalidArgumentError(f"an address must be host:port, not a {type(address).__name__}")
    host = host.strip("[]")
    if not host or not (port.isascii() and port.isdigit()):
        raise InvalidArgumentError(f"an address must be host:port, not {str(address)[:80]!r}")
    if len(port) > 5 or int(port) > 65535:
        raise InvalidArgumentError(f"the port of an address must be 0 to 65535, not {port[:80]}")
    return host, int(port)
