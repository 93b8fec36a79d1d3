"""A gRPC server with an adapter, for programs that have no gRPC server of their own.

Source: cn-infra ``rpc/grpc``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import grpc

from datasync.errors import InvalidArgumentError
from datasync.grpcsync.limits import KEEPALIVE, KEEPALIVE_TIMEOUT, Limits, channel_options
from datasync.grpcsync.server.adapter import Adapter
from datasync.grpcsync.server.executor import ThreadPerCallExecutor
from datasync.grpcsync.tls import ServerTLS
from datasync.runtime.closing import Closable
from datasync.runtime.grpcio import check_grpc
from datasync.runtime.logs import get_logger
from datasync.runtime.sockets import connection_limit
from datasync.runtime.threads import CLOSE_TIMEOUT, ForkGuard
from datasync.runtime.timeouts import check_seconds

log = get_logger(__name__)

#: Concurrent calls; further ones fail with RESOURCE_EXHAUSTED. Each call has a thread, a stream two.
MAX_CALLS = 1000
#: Connections, unless the descriptors that are free allow fewer; further ones are closed at once.
MAX_CONNECTIONS = 1024
#: Seconds that a connection may take for its handshake, and after which one without a call is closed. A limit of
#: connections alone would let strangers keep the others out for ever.
HANDSHAKE_TIMEOUT, MAX_IDLE = 10.0, 60.0
#: Minimum seconds between the pings of a client; the server disconnects a client that pings more often.
MIN_PING_INTERVAL = 2.0
#: Share of ``max_age`` after which a stream ends gracefully, before gRPC closes its connection.
_STREAM_AGE_SHARE = 0.8


class Server(Closable):
    """A running gRPC server and its adapter; a context manager that closes both. Threads: any."""

    def __init__(
        self, server: grpc.Server, executor: ThreadPerCallExecutor, adapter: Adapter, address: str, port: int
    ) -> None:
        self._guard = ForkGuard(f"the gRPC server on {address}")
        self._server = server
        self._executor = executor
        #: Watcher of the changes that clients send.
        self.adapter = adapter
        #: Address for clients: ``host:port`` with the actual port, or ``unix:path``.
        self.address = address
        #: Actual port; 0 for a Unix domain socket.
        self.port = port

    def close(self) -> None:
        """Close the adapter, then the server; both within seconds. May be called twice."""
        if self._guard.forked:
            return
        self.adapter.close()
        # The grace period is for the final statuses of the calls; calls that do not receive them are aborted.
        self._server.stop(CLOSE_TIMEOUT / 2).wait(CLOSE_TIMEOUT)
        self._executor.shutdown()
        log.info("%s: closed", self.address)


def serve(
    address: str,
    *,
    tls: ServerTLS | None = None,
    max_calls: int = MAX_CALLS,
    max_connections: int = MAX_CONNECTIONS,
    max_age: float | None = None,
    keepalive: float = KEEPALIVE,
    keepalive_timeout: float = KEEPALIVE_TIMEOUT,
    limits: Limits | None = None,
    health: bool = True,
    **options: Any,
) -> Server:
    """Start a server on *address*, which serves until ``close``.

    Args:
      address: ``host:port``, with port 0 for any free port, or ``unix:path``.
      tls: TLS settings. None sends everything in plain text, including the token.
      max_calls: Maximum number of concurrent calls; each has a thread, a stream two.
      max_connections: Maximum number of connections, at most a third of the descriptors that are free now; further
        ones are closed at once. grpcio 1.62 does not enforce it. Connections without a call are closed after a minute.
      max_age: Seconds after which the server closes a connection gracefully, so that clients spread over new servers.
        No request is lost.
      keepalive, keepalive_timeout: Seconds without traffic before a keepalive ping, and to wait for its response.
      limits, health, options: Arguments of :class:`Adapter`. gRPC enforces the message size before it reads a message.

    Raises:
      InvalidArgumentError: The server cannot listen on *address*, or an option is unusable.
    """
    check_grpc()
    limits = limits or Limits()
    if not isinstance(max_connections, int) or max_connections < 1:
        raise InvalidArgumentError("max_connections must be an integer of 1 or more")
    check_seconds("keepalive", keepalive)
    check_seconds("keepalive_timeout", keepalive_timeout)
    if max_age is not None:
        check_seconds("max_age", max_age)
        limits = replace(limits, stream_age=limits.stream_age or max_age * _STREAM_AGE_SHARE)
    executor = ThreadPerCallExecutor()
    server = grpc.server(
        executor,
        maximum_concurrent_rpcs=max_calls,
        options=_options(limits, max_connections, max_age, keepalive, keepalive_timeout),
    )
    adapter = Adapter(server, limits=limits, health=health, **options)
    try:
        port = _listen(server, address, tls)
        server.start()
        if not address.startswith("unix:"):
            address = f"{address.rpartition(':')[0]}:{port}"
        else:
            port = 0
        log.info("%s: listening%s", address, "" if tls is None else " with TLS")
    except BaseException:
        adapter.close()
        server.stop(None)
        raise
    return Server(server, executor, adapter, address, port)


def _listen(server: grpc.Server, address: str, tls: ServerTLS | None) -> int:
    try:
        if tls is None:
            port: int = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, tls.credentials())
    except RuntimeError as error:
        raise InvalidArgumentError(f"cannot listen on {address!r}: {error}") from error
    if port == 0:  # older versions of grpcio do not raise
        raise InvalidArgumentError(f"cannot listen on {address!r}")
    return port


def _options(
    limits: Limits, max_connections: int, max_age: float | None, keepalive: float, timeout: float
) -> list[tuple[str, int]]:
    options = [
        *channel_options(keepalive, timeout),
        ("grpc.max_receive_message_length", limits.message_size),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_allowed_incoming_connections", connection_limit(max_connections)),
        ("grpc.max_connection_idle_ms", int(MAX_IDLE * 1000)),
        ("grpc.server_handshake_timeout_ms", int(HANDSHAKE_TIMEOUT * 1000)),
        # Otherwise a second server could share the port without an error.
        ("grpc.so_reuseport", 0),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", int(MIN_PING_INTERVAL * 1000)),
    ]
    if max_age is not None:
        options += [
            ("grpc.max_connection_age_ms", int(max_age * 1000)),
            # A stream that begins just before the connection reaches max_age may live as long as any other.
            ("grpc.max_connection_age_grace_ms", int(max_age * 1000)),
        ]
    return options
