"""A gRPC server for those who have none: ``serve`` starts it, the adapter on it watches.

Source: cn-infra ``rpc/grpc``; contract section 5.
"""

from __future__ import annotations

import logging
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
from datasync.runtime.threads import CLOSE_TIMEOUT, ForkGuard

log = logging.getLogger(__name__)

#: Calls at a time, each with a thread (a stream has two); more are turned away with RESOURCE_EXHAUSTED.
MAX_CALLS = 1000
#: Seconds between pings of a client that are not held against it.
MIN_PING_INTERVAL = 2.0
#: Share of ``max_age`` after which a stream is ended in order; grpc ends its connection later, and less kindly.
_STREAM_AGE_SHARE = 0.8


class Server(Closable):
    """A running server, and its adapter. A context manager that closes both. Threads: any."""

    def __init__(
        self, server: grpc.Server, executor: ThreadPerCallExecutor, adapter: Adapter, address: str, port: int
    ) -> None:
        self._guard = ForkGuard(f"the gRPC server on {address}")
        self._server = server
        self._executor = executor
        #: The watcher of what peers push.
        self.adapter = adapter
        #: ``host:port`` as clients dial it, with the port that it got; or ``unix:path``.
        self.address = address
        #: 0 for a socket in the file system.
        self.port = port

    def close(self) -> None:
        """End the adapter, then the server; both within seconds. May be called twice."""
        if self._guard.forked:
            return
        self.adapter.close()
        # What is left to do is to send the farewells; whoever does not take them is cut off.
        self._server.stop(CLOSE_TIMEOUT / 2).wait(CLOSE_TIMEOUT)
        self._executor.shutdown()
        log.info("%s: closed", self.address)


def serve(
    address: str,
    *,
    tls: ServerTLS | None = None,
    max_calls: int = MAX_CALLS,
    max_age: float | None = None,
    keepalive: float = KEEPALIVE,
    keepalive_timeout: float = KEEPALIVE_TIMEOUT,
    limits: Limits | None = None,
    health: bool = True,
    **options: Any,
) -> Server:
    """Listen on *address* and serve peers, until ``close``.

    Args:
      address: ``host:port``, with port 0 for any free one, or ``unix:path``.
      tls: Without it everything is in plain text, also the token.
      max_calls: Calls at a time; each has a thread, a stream two.
      max_age: Seconds after which connections are ended in order, so that clients spread over a new set of servers;
        nothing is lost by it.
      keepalive, keepalive_timeout: Seconds of silence before a peer is asked for a sign of life, and for that sign.
      limits, health, options: As for :class:`Adapter`; the message size holds before anything is read.

    Raises:
      InvalidArgumentError: *address* cannot be listened on, or an option is unusable.
    """
    check_grpc()
    limits = limits or Limits()
    if max_age is not None:
        if not max_age > 0:
            raise InvalidArgumentError("max_age must be more than 0 seconds, or None")
        limits = replace(limits, stream_age=limits.stream_age or max_age * _STREAM_AGE_SHARE)
    executor = ThreadPerCallExecutor()
    server = grpc.server(
        executor,
        maximum_concurrent_rpcs=max_calls,
        options=_options(limits, max_age, keepalive, keepalive_timeout),
    )
    adapter = Adapter(server, limits=limits, health=health, **options)
    try:
        port = _listen(server, address, tls)
        server.start()
    except BaseException:
        adapter.close()
        server.stop(None)
        raise
    if not address.startswith("unix:"):
        address = f"{address.rpartition(':')[0]}:{port}"
    else:
        port = 0
    log.info("%s: listening%s", address, "" if tls is None else " with TLS")
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


def _options(limits: Limits, max_age: float | None, keepalive: float, timeout: float) -> list[tuple[str, int]]:
    options = [
        *channel_options(keepalive, timeout),
        ("grpc.max_receive_message_length", limits.message_size),
        ("grpc.max_send_message_length", -1),
        # Else a second server on the same port would share it in silence.
        ("grpc.so_reuseport", 0),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", int(MIN_PING_INTERVAL * 1000)),
    ]
    if max_age is not None:
        options += [
            ("grpc.max_connection_age_ms", int(max_age * 1000)),
            # A stream that began just before the connection is of age gets as old as any other.
            ("grpc.max_connection_age_grace_ms", int(max_age * 1000)),
        ]
    return options
