"""A server of its own for the probes and metrics of a program that has no other one."""

from __future__ import annotations

from collections.abc import Iterable

from datasync.metrics.endpoints import HealthMiddleware
from datasync.metrics.health import HasStatus
from datasync.restsync.httpd.connection import DEFAULT_LIMITS
from datasync.restsync.httpd.server import Server, ServerTls, make_server_context
from datasync.restsync.serve import split_address
from datasync.runtime.logs import get_logger

log = get_logger(__name__)


def serve_health(
    address: str | tuple[str, int],
    *,
    token: str | Iterable[str] | None = None,
    max_stale: float | None = None,
    views: Iterable[HasStatus] = (),
    tls: ServerTls | None = None,
) -> Server:
    """Serve ``/livez``, ``/readyz``, ``/healthz`` and ``/metrics`` on *address*, and return at once.

    Args:
      address: ``host:port`` or a pair; port 0 takes a free port.
      token: Token that ``/healthz`` and ``/metrics`` need; None leaves them open.
      max_stale: Seconds after which a source that is lost makes the process not ready; None for never.
      views: As for ``HealthMiddleware``.
      tls: Certificate for HTTPS: a context, or files.

    Raises:
      InvalidArgumentError: An argument is not valid.
      StoreConnectionError: The server cannot listen on the address.

    Threads: any; close the result to end the server.
    """
    application = HealthMiddleware(token=token, max_stale=max_stale, views=views)
    server = Server(split_address(address), application, make_server_context(tls), DEFAULT_LIMITS)
    try:
        server.start()
    except BaseException:
        server.close()
        raise
    return server
