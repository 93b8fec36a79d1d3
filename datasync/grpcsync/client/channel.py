"""The channel of a client to its server: the calls, and the errors that their statuses mean."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import grpc

from datasync.errors import (
    MAX_TEXT,
    DatasyncError,
    InvalidArgumentError,
    PermissionDenied,
    StoreConnectionError,
    StoreError,
    UnsupportedError,
)
from datasync.grpcsync.limits import channel_options
from datasync.grpcsync.protocol import (
    DATA_CHANGES,
    DATA_RESYNCS,
    PING,
    SESSION_KEY,
    SOURCE_KEY,
    TAKEN_KEY,
    TRACE_KEY,
    authorization,
    serialize,
    value_of,
)
from datasync.grpcsync.tls import ClientTLS, advice
from datasync.syncbase.msg.datamsg_pb2 import (
    DataChangeReply,
    DataChangeRequest,
    DataResyncReplies,
    DataResyncRequests,
    PingReply,
    PingRequest,
)

_ERRORS: dict[grpc.StatusCode, type[DatasyncError]] = {
    grpc.StatusCode.UNAUTHENTICATED: PermissionDenied,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.UNIMPLEMENTED: UnsupportedError,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgumentError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: StoreError,
    grpc.StatusCode.UNAVAILABLE: StoreConnectionError,
    grpc.StatusCode.DEADLINE_EXCEEDED: StoreConnectionError,
    grpc.StatusCode.CANCELLED: StoreConnectionError,
}

#: Maximum size of a reply, as a multiple of the maximum size of a request.
REPLY_FACTOR = 8


class CallResult(NamedTuple):
    """The result of a call that has ended. Unlike the call, it is safe to keep: see ``forget_traceback``."""

    reply: Any  #: None for a stream, and for a call that failed.
    error: DatasyncError  #: The error for the status, with the text of the server.
    taken: int | None  #: Number of requests that the server took; None if it does not report it.


class ServerChannel:
    """Calls to a server that implements ``msg.DataMsgService``.

    Each session uses a new channel, which connects at its first call and reads the certificates again. A channel that
    failed backs off by itself, and in older versions of grpcio it does not reconnect while no call is made.

    Threads: one at a time.
    """

    def __init__(
        self,
        target: str,
        *,
        tls: ClientTLS | None,
        token: str | Callable[[], str] | None,
        source: str,
        max_message_size: int,
        keepalive: float,
        keepalive_timeout: float,
    ) -> None:
        self.target = target
        self._token = token
        self._source = source
        self._tls = tls
        self._channel: grpc.Channel | None = None
        # Identifies the sender, so that the server can drop what is left of its previous session.
        self._name = uuid.uuid4().hex
        self._sessions = 0
        self._options: list[tuple[str, int | str]] = [
            *channel_options(keepalive, keepalive_timeout),
            ("grpc.max_send_message_length", max_message_size),
            # Replies to a resync are large: they repeat the id of the request for each key.
            ("grpc.max_receive_message_length", min(max(REPLY_FACTOR * max_message_size, 64 * 1024), 2**31 - 1)),
            # Otherwise clients share a connection, and also its close and its backoff.
            ("grpc.use_local_subchannel_pool", 1),
            # The environment's HTTP proxy is meant for web traffic.
            ("grpc.enable_http_proxy", 0),
        ]
        if tls is not None:
            tls.credentials()  # an unreadable file is an error of the constructor's caller
            if tls.server_name is not None:
                self._options.append(("grpc.ssl_target_name_override", tls.server_name))

    def open(self, timeout: float) -> Any:
        """Start a session on a new channel with a ping. Returns the call, which is also a future."""
        self.close()
        self._sessions += 1
        if self._tls is None:
            channel = grpc.insecure_channel(self.target, self._options)
        else:
            channel = grpc.secure_channel(self.target, self._tls.credentials(), self._options)
        self._channel = channel
        self._ping = channel.unary_unary(PING, serialize, PingReply.FromString)
        self._resyncs = channel.unary_unary(DATA_RESYNCS, serialize, DataResyncReplies.FromString)
        self._changes = channel.stream_stream(DATA_CHANGES, serialize, DataChangeReply.FromString)
        return self.ping(timeout)

    def ping(self, timeout: float) -> Any:
        """Send a ping. Returns the call, which is also a future."""
        return self._ping.future(PingRequest(), timeout=timeout, metadata=self._metadata())

    def resync(self, requests: DataResyncRequests, timeout: float, trace: str = "") -> Any:
        """Send a full state within *trace*. Returns the call, which is also a future."""
        metadata = (*self._metadata(), (TRACE_KEY, trace)) if trace else self._metadata()
        return self._resyncs.future(requests, timeout=timeout, metadata=metadata)

    def changes(self, requests: Iterator[DataChangeRequest]) -> Any:
        """Open a change stream. Returns the call, which iterates over the replies."""
        return self._changes(requests, metadata=self._metadata())

    def result_of_call(self, call: Any) -> CallResult:
        """Return the result of *call*, which has ended."""
        code = call.code()
        kind = _ERRORS.get(code, StoreError)
        details = call.details() or "no reason given"
        taken = value_of(call.trailing_metadata() or (), TAKEN_KEY)
        return CallResult(
            call.result() if code is grpc.StatusCode.OK else None,
            kind(f"{self.target}: {details[:MAX_TEXT]} ({code.name}){advice(details, self._tls)}"),
            int(taken) if taken.isdecimal() and len(taken) < 20 else None,
        )

    def close(self) -> None:
        """Close the channel, which ends every call on it."""
        if self._channel is not None:
            self._channel.close()

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        token = self._token() if callable(self._token) else self._token
        return (
            *(() if token is None else (authorization(token),)),
            *(() if not self._source else ((SOURCE_KEY, self._source),)),
            (SESSION_KEY, f"{self._name}/{self._sessions}"),
        )
