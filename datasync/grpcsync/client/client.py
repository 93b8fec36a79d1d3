"""A writer that sends changes to a server and returns the result of the server's subscribers.

Source: contract C9, C15-C18. cn-infra has no counterpart.
"""

from __future__ import annotations

import concurrent.futures
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from google.protobuf.message import Message

from datasync.checks import check_key, check_message
from datasync.commits import WriteResult
from datasync.errors import DatasyncError, InvalidArgumentError, UnsupportedError
from datasync.grpcsync.client.channel import ServerChannel
from datasync.grpcsync.client.request_queue import AnyRequest, PendingRequest, RequestQueue
from datasync.grpcsync.client.session import SessionManager
from datasync.grpcsync.limits import KEEPALIVE, KEEPALIVE_TIMEOUT, MAX_MESSAGE_SIZE, WINDOW
from datasync.grpcsync.protocol import check_source
from datasync.grpcsync.status import ClientStatus
from datasync.grpcsync.tls import ClientTLS
from datasync.options import DelOption, PutOption, read_del_options, read_put_options
from datasync.runtime.closing import Closable
from datasync.runtime.grpcio import check_grpc
from datasync.runtime.threads import CLOSE_TIMEOUT, ForkGuard
from datasync.runtime.timeouts import check_seconds
from datasync.runtime.tokens import check_token
from datasync.syncbase.msg.convert import CONTENT_JSON, delete_request, put_request, resync_requests
from datasync.syncbase.msg.datamsg_pb2 import DEL, DataChangeRequest, DataResyncRequests, Seq
from datasync.tracing import begin_send, end, outgoing_of

#: Seconds that a request may wait before it is sent.
SEND_TIMEOUT = 10.0
#: Seconds to wait for the reply to a request, counted from the reply before it.
ANSWER_TIMEOUT = 10.0
#: Requests that may wait to be sent; further callers wait for room.
MAX_PENDING = 1000

T = TypeVar("T")


class Client(Closable):
    """Sends changes and full states to a server that implements ``msg.DataMsgService``, pipelined over one stream.

    The client connects in the background and reconnects after every failure. Each request ends in one of three ways:

    - The server replied. The result has the revision in the server, 0 from a peer without this extension; that of a
      delete is true if the key existed. Or it is the error that a local caller would get: ``PropagationError`` with the
      same ``reasons`` by subscription and key, ``DoneTimeout``, ``DeliveryTimeout``, ``SubscriptionError`` if no
      subscriber watches the key, or ``InvalidArgumentError``.
    - The request was not sent: ``StoreConnectionError``, ``PermissionDenied`` or ``ClosedError``.
    - The stream broke between request and reply: ``UnknownOutcome``. The client does not repeat such a request.

    Args:
      target: ``host:port``, or any other target that gRPC supports.
      tls: TLS settings. None sends everything in plain text, including the token.
      token: The bearer token, or a callable that returns it and is called for each connection.
      source: Name of this sender's source, in printable ASCII. Senders without one share the server's default source.
      state: Callable that returns the full state, key to message. The client sends it at the start of every session,
        so that a restarted server has it again. Called in a thread of the client.
      keep_state: Keep the state that was applied through this client, and send that at the start of every session.
        Nothing is sent before the first applied request; a request with an unknown outcome is not part of the state.
      content_type: Encoding of values: JSON, which every server reads, or ``msg.CONTENT_PROTO``.
      in_flight: Maximum number of requests without a reply.
      max_pending: Maximum number of requests that wait to be sent. Further calls wait for room.
      send_timeout: Seconds that a request may wait before it is sent.
      answer_timeout: Seconds to wait for the reply to a request, counted from the reply before it.
      keepalive: Seconds without traffic before a keepalive ping. Servers may disconnect clients that ping too often:
        Go's do so below five minutes unless configured otherwise.
      keepalive_timeout: Seconds to wait for the response to a ping.
      max_message_size: Bytes per request. The client rejects larger ones, because the server would end the stream.

    Raises:
      InvalidArgumentError: An argument is unusable, or a TLS file cannot be read.

    Threads: any. In a callback of one of its futures, use only the ``_async`` methods.
    """

    def __init__(
        self,
        target: str,
        *,
        tls: ClientTLS | None = None,
        token: str | Callable[[], str] | None = None,
        source: str = "",
        state: Callable[[], Mapping[str, Message]] | None = None,
        keep_state: bool = False,
        content_type: str = CONTENT_JSON,
        in_flight: int = WINDOW,
        max_pending: int = MAX_PENDING,
        send_timeout: float = SEND_TIMEOUT,
        answer_timeout: float = ANSWER_TIMEOUT,
        keepalive: float = KEEPALIVE,
        keepalive_timeout: float = KEEPALIVE_TIMEOUT,
        max_message_size: int = MAX_MESSAGE_SIZE,
    ) -> None:
        check_grpc()
        check_key(target, "a target")
        if source:
            check_source(source)
        if isinstance(token, str):
            check_token(token)
        if state is not None and keep_state:
            raise InvalidArgumentError("set state or keep_state, not both")
        for name, number in (("in_flight", in_flight), ("max_pending", max_pending)):
            if not isinstance(number, int) or number < 1:
                raise InvalidArgumentError(f"{name} must be an integer of 1 or more")
        times = {"send_timeout": send_timeout, "answer_timeout": answer_timeout}
        times |= {"keepalive": keepalive, "keepalive_timeout": keepalive_timeout}
        for name, seconds in times.items():
            check_seconds(name, seconds)
        self.target = target
        self._content_type = content_type
        self._send_timeout = send_timeout
        self._max_message_size = max_message_size
        self._source = source
        self._state = state
        self._guard = ForkGuard(f"the gRPC client of {target}")
        # Guards the two below. Reentrant, because the collector may run a finalizer of the user's under it.
        self._lock = threading.RLock()
        self._kept: dict[str, DataChangeRequest] | None = None
        self._number = 0
        self._keep = keep_state
        self._started = int(time.time())  # part of the ids of resyncs: tells incarnations of the sender apart
        self._queue = RequestQueue(target, in_flight=in_flight, max_pending=max_pending, applied=self._note)
        self._session = SessionManager(
            ServerChannel(
                target,
                tls=tls,
                token=token,
                source=source,
                max_message_size=max_message_size,
                keepalive=keepalive,
                keepalive_timeout=keepalive_timeout,
            ),
            self._queue,
            answer_timeout=answer_timeout,
            full_state=self._full_state,
        )

    def put(self, key: str, data: Message, *opts: PutOption) -> WriteResult:
        """Set *key* to *data*, and wait until the server's subscribers have applied it.

        Raises:
          InvalidArgumentError: *key* or *data* is unusable, or the request is too large.
          UnsupportedError: An option was given; the protocol has none.
          DatasyncError: See :class:`Client`.
        """
        return self._wait(self.put_async(key, data, *opts))

    def put_async(self, key: str, data: Message, *opts: PutOption) -> concurrent.futures.Future[WriteResult]:
        """Like ``put``, but return a future instead of waiting for the reply. Waits for room if the queue is full."""
        self._guard.check()
        check_key(key)
        check_message(data)
        read_put_options(opts)
        _reject_options(key, "put", opts)
        return self._submit(put_request(key, data, self._content_type), repr(key))

    def delete(self, key: str, *opts: DelOption) -> WriteResult:
        """Delete *key*, and wait until the server's subscribers have applied it. Raises the errors of ``put``.

        Returns:
          A result that is false if the server reports that there was nothing to delete; always true for a peer without
          this extension.
        """
        return self._wait(self.delete_async(key, *opts))

    def delete_async(self, key: str, *opts: DelOption) -> concurrent.futures.Future[WriteResult]:
        """Like ``delete``, but return a future instead of waiting for the reply."""
        self._guard.check()
        check_key(key)
        read_del_options(opts)
        _reject_options(key, "delete", opts)
        return self._submit(delete_request(key), repr(key))

    def resync(self, values: Mapping[str, Message]) -> WriteResult:
        """Replace the full state of this source with *values*, and wait until the subscribers have applied it.

        Keys that are not in *values* are deleted; an empty mapping deletes all. Raises the errors of ``put``.
        """
        return self._wait(self.resync_async(values))

    def resync_async(self, values: Mapping[str, Message]) -> concurrent.futures.Future[WriteResult]:
        """Like ``resync``, but return a future. Requests are applied in the order of the calls."""
        self._guard.check()
        return self._submit(self._resync_of(values), "resync")

    def status(self) -> ClientStatus:
        """Return the status of the connection and the requests (C18)."""
        self._guard.check()
        return self._session.status()

    def wait_ready(self, timeout: float) -> None:
        """Wait up to *timeout* seconds for a session. Raises ``NotReadyError`` with the last error."""
        self._guard.check()
        self._session.wait_ready(check_seconds("timeout", timeout, zero=True))

    def close(self, timeout: float = CLOSE_TIMEOUT) -> None:
        """Wait up to *timeout* seconds for the replies to accepted requests, settle the others, and disconnect.

        Requests that were not sent fail with ``ClosedError``, the others with ``UnknownOutcome``. May be called twice.
        """
        if not self._guard.forked:
            self._session.close(check_seconds("timeout", timeout, zero=True))

    def __repr__(self) -> str:
        return f"<Client of {self.target}>"

    def _submit(self, message: DataChangeRequest | DataResyncRequests, what: str) -> concurrent.futures.Future[T]:
        change = message if isinstance(message, DataChangeRequest) else None
        span = begin_send(self._source or self.target, None if change is None else (change.key,))
        trace = outgoing_of(span)
        if trace and change is not None:
            change.traceparent = trace
        try:
            self._check_size(message, what)
            request: AnyRequest = PendingRequest(message, what, time.monotonic() + self._send_timeout, trace)  # type: ignore[assignment]
            self._queue.submit(request, may_wait=not self._session.inside)
        except BaseException as error:
            if span is not None:
                end(span, error)
            raise
        if span is not None:
            request.future.add_done_callback(lambda future: end(span, future.exception()))
        return request.future

    def _check_size(self, message: Message, what: str) -> None:
        size = message.ByteSize()
        if size > self._max_message_size:
            raise InvalidArgumentError(
                f"{what} takes {size} bytes, more than max_message_size={self._max_message_size}"
            )

    def _wait(self, future: concurrent.futures.Future[T]) -> T:
        if self._session.inside and not future.done():
            raise DatasyncError(
                "a callback runs in the thread that delivers replies and cannot wait for one: use put_async()"
            )
        return future.result()  # the session manager settles every future

    def _resync_of(self, values: Mapping[str, Message]) -> DataResyncRequests:
        with self._lock:
            self._number += 1
            number = self._number
        seq = Seq(originator=self._source or "datasync", seqCreatedSec=self._started, seq=number)
        return resync_requests(values, self._content_type, seq)

    # Called by the session manager and the queue.

    def _full_state(self) -> DataResyncRequests | None:
        if self._state is not None:
            state = self._resync_of(self._state())
        else:
            state = DataResyncRequests()
            with self._lock:
                if self._kept is None:
                    return None
                for key, put in self._kept.items():
                    state.dataResyncs.add(key=key, content=put.content, content_type=put.content_type)
        self._check_size(state, "the full state")
        return state

    def _note(self, request: AnyRequest) -> None:
        """Add an applied request to the kept state."""
        if not self._keep:
            return
        message = request.message
        with self._lock:
            if self._kept is None:
                self._kept = {}
            if isinstance(message, DataResyncRequests):
                self._kept = {
                    item.key: DataChangeRequest(key=item.key, content=item.content, content_type=item.content_type)
                    for item in message.dataResyncs
                }
            elif message.operationType == DEL:
                self._kept.pop(message.key, None)
            else:
                self._kept[message.key] = message


def _reject_options(key: str, what: str, opts: Sequence[PutOption | DelOption]) -> None:
    if opts:
        raise UnsupportedError(f"{key!r}: {what} over gRPC does not support {type(opts[0]).__name__}")
