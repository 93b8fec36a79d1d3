"""The other side, as a client sees it: its channel, the calls that it has, and what a status of it means."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import grpc

from datasync.errors import (
    DatasyncError,
    InvalidArgumentError,
    PermissionDenied,
    StoreConnectionError,
    StoreError,
    UnsupportedError,
)
from datasync.grpcsync.error_codes import MAX_TEXT
from datasync.grpcsync.limits import channel_options
from datasync.grpcsync.protocol import (
    DATA_CHANGES,
    DATA_RESYNCS,
    PING,
    SESSION_KEY,
    SOURCE_KEY,
    TAKEN_KEY,
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


#: A reply may be so many times as large as the largest request.
REPLY_FACTOR = 8


class CallResult(NamedTuple):
    """What a call came to. This may be kept and raised; the call may not, see ``forget_traceback``."""

    reply: Any  #: None when it failed, and of a stream.
    error: DatasyncError  #: What its status means, with the text that came with it.
    taken: int | None  #: How many requests were taken; None when the peer does not say.


class ServerChannel:
    """A server that speaks ``msg.DataMsgService``.

    Each session has a channel of its own: a new one connects when its first call is made, whatever went wrong before.
    One that failed waits, and in older versions of grpcio does not notice that it could connect while no call is made.
    And a new one reads the certificates again.

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
        # For the server, which drops what is left of the session before.
        self._name = uuid.uuid4().hex
        self._sessions = 0
        self._options: list[tuple[str, int | str]] = [
            *channel_options(keepalive, keepalive_timeout),
            ("grpc.max_send_message_length", max_message_size),
            # Replies are small, save for those to a resync, which name its keys, each with the id of the request.
            ("grpc.max_receive_message_length", min(max(REPLY_FACTOR * max_message_size, 64 * 1024), 2**31 - 1)),
            # Clients share connections otherwise, and one's close or pause would be another's.
            ("grpc.use_local_subchannel_pool", 1),
            # A proxy set for the web is not meant for this.
            ("grpc.enable_http_proxy", 0),
        ]
        if tls is not None:
            tls.credentials()  # what cannot be read is an error of whoever asks for a client
            if tls.server_name is not None:
                self._options.append(("grpc.ssl_target_name_override", tls.server_name))

    def open(self, timeout: float) -> Any:
        """Begin a session: make a channel, and ask for a sign of life; the call, which is also a future."""
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
        return self._ping.future(PingRequest(), timeout=timeout, metadata=self._metadata())

    def resync(self, requests: DataResyncRequests, timeout: float) -> Any:
        """Send a full state; the call, which is also a future."""
        return self._resyncs.future(requests, timeout=timeout, metadata=self._metadata())

    def changes(self, requests: Iterator[DataChangeRequest]) -> Any:
        """Open a stream of changes; the call, which iterates over the replies."""
        return self._changes(requests, metadata=self._metadata())

    def result_of_call(self, call: Any) -> CallResult:
        """What *call*, which is over, came to."""
        code = call.code()
        kind = _ERRORS.get(code, StoreError)
        said = call.details() or "no reason given"
        taken = value_of(call.trailing_metadata() or (), TAKEN_KEY)
        return CallResult(
            call.result() if code is grpc.StatusCode.OK else None,
            kind(f"{self.target}: {said[:MAX_TEXT]} ({code.name}){advice(said, self._tls)}"),
            int(taken) if taken.isdecimal() and len(taken) < 20 else None,
        )

    def close(self) -> None:
        """End the channel and every call on it."""
        if self._channel is not None:
            self._channel.close()

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        token = self._token() if callable(self._token) else self._token
        return (
            *(() if token is None else (authorization(token),)),
            *(() if not self._source else ((SOURCE_KEY, self._source),)),
            (SESSION_KEY, f"{self._name}/{self._sessions}"),
        )
