"""A writer that pushes changes to a peer, and hears what its subscribers answer.

Source: contract section 5, C9, C15-C18. cn-infra has no counterpart.
"""

from __future__ import annotations

import concurrent.futures
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from google.protobuf.message import Message

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
from datasync.runtime.tokens import check_token
from datasync.serializer import check_key, check_message
from datasync.syncbase.msg.convert import CONTENT_JSON, delete_request, put_request, resync_requests
from datasync.syncbase.msg.datamsg_pb2 import DEL, DataChangeRequest, DataResyncRequests, Seq

#: Seconds that a request may wait to be sent.
SEND_TIMEOUT = 10.0
#: Seconds that a request which was sent may be without an answer, counted from the answer before it.
ANSWER_TIMEOUT = 10.0
#: Requests that may wait to be sent; whoever has another one waits for room.
MAX_PENDING = 1000

T = TypeVar("T")


class Client(Closable):
    """Sends changes and full states to a peer that speaks ``msg.DataMsgService``, many at a time over one stream.

    It connects by itself, at once and again after every break. Each request ends in one of three ways:

    - an answer: None (for a delete, whether there was something to delete), or the error that a local caller would get:
      ``PropagationError`` with the text of the subscribers' errors, ``DoneTimeout``, ``DeliveryTimeout``,
      ``SubscriptionError`` when nobody watches the key, ``InvalidArgumentError``;
    - it was surely not sent: ``StoreConnectionError``, ``PermissionDenied``, ``ClosedError``;
    - ``UnknownOutcome``: it was sent, and the stream broke before the answer. It is not repeated by itself.

    Args:
      target: ``host:port``, or any other name that grpc knows.
      tls: Without it everything is in plain text, also the token.
      token: What the peer asks for, or what gives it: called for each connection.
      source: Name of this sender, where the peer is to tell senders apart; printable ASCII.
      state: Gives the full state, key to message; it is sent whenever a session begins, so that a restarted peer
        has everything again. Called in a thread of the client.
      keep_state: The same with what was applied over this client, kept here; nothing is sent before something was. A
        request whose outcome is unknown is not part of it.
      content_type: How values are written: JSON, which all peers read, or ``msg.CONTENT_PROTO``.
      in_flight: Requests that are sent and not answered at a time.
      max_pending: Requests that wait to be sent; with more, ``put_async`` waits for room.
      send_timeout, answer_timeout: Seconds.
      keepalive, keepalive_timeout: Seconds of silence before the peer is asked for a sign of life, and for that sign.
        Servers may forbid pings that come often: Go's do, below five minutes, unless told otherwise.
      max_message_size: Bytes; a larger request is refused here, for the peer would end the whole stream.

    Threads: any, and never in the callback of one of its own futures, except for the ``_async`` methods.
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
            raise InvalidArgumentError("the full state is kept here or given by a callable, not both")
        for name, number in (("in_flight", in_flight), ("max_pending", max_pending)):
            if not isinstance(number, int) or number < 1:
                raise InvalidArgumentError(f"{name} must be 1 or more")
        self.target = target
        self._content_type = content_type
        self._send_timeout = send_timeout
        self._max_message_size = max_message_size
        self._source = source
        self._state = state
        self._guard = ForkGuard(f"the gRPC client of {target}")
        self._lock = threading.Lock()  # guards the two below
        self._kept: dict[str, DataChangeRequest] | None = None
        self._number = 0
        self._keep = keep_state
        self._started = int(time.time())  # only a name of this client's life, for the ids of resyncs
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

    def put(self, key: str, data: Message, *opts: PutOption) -> None:
        """Send *data* as the value of *key*, and wait until the peer's subscribers have applied it.

        Raises:
          InvalidArgumentError, UnsupportedError: The arguments are unusable; no option can be honoured.
          DatasyncError: See :class:`Client`.
        """
        self._wait(self.put_async(key, data, *opts))

    def put_async(self, key: str, data: Message, *opts: PutOption) -> concurrent.futures.Future[None]:
        """As ``put``, without waiting for the answer: it comes through the future. Waits for room, if there is none."""
        self._guard.check()
        check_key(key)
        check_message(data)
        read_put_options(opts)
        _refuse_options(key, "put", opts)
        return self._submit(put_request(key, data, self._content_type), repr(key))

    def delete(self, key: str, *opts: DelOption) -> bool:
        """Send that *key* is deleted, and wait until the subscribers have applied it. Raises as ``put``.

        Returns:
          False when the peer says that there was nothing to delete; a peer of old always counts as True.
        """
        return self._wait(self.delete_async(key, *opts))

    def delete_async(self, key: str, *opts: DelOption) -> concurrent.futures.Future[bool]:
        """As ``delete``, without waiting for the answer."""
        self._guard.check()
        check_key(key)
        read_del_options(opts)
        _refuse_options(key, "delete", opts)
        return self._submit(delete_request(key), repr(key))

    def resync(self, values: Mapping[str, Message]) -> None:
        """Make *values* the full state of this source, and wait until the subscribers have applied it.

        What is not in it is deleted; an empty mapping deletes everything. Raises as ``put``.
        """
        self._wait(self.resync_async(values))

    def resync_async(self, values: Mapping[str, Message]) -> concurrent.futures.Future[None]:
        """As ``resync``, without waiting for the answer. Order is kept: between what was sent before and after it."""
        self._guard.check()
        return self._submit(self._resync_of(values), "resync")

    def status(self) -> ClientStatus:
        """How the connection and the requests are doing (C18)."""
        self._guard.check()
        return self._session.status()

    def wait_ready(self, timeout: float) -> None:
        """Wait until the peer was reached; ``NotReadyError`` with the last error when it was not."""
        self._guard.check()
        self._session.wait_ready(timeout)

    def close(self, timeout: float = CLOSE_TIMEOUT) -> None:
        """Wait up to *timeout* seconds for the answers that are due, settle every other request, and disconnect.

        What was not sent ends with ``ClosedError``, what was sent with ``UnknownOutcome``. May be called twice.
        """
        if not self._guard.forked:
            self._session.close(timeout)

    def __repr__(self) -> str:
        return f"<Client of {self.target}>"

    def _submit(self, message: DataChangeRequest | DataResyncRequests, what: str) -> concurrent.futures.Future[T]:
        self._check_size(message, what)
        request: AnyRequest = PendingRequest(message, what, time.monotonic() + self._send_timeout)  # type: ignore[assignment]
        self._queue.submit(request, may_wait=not self._session.inside)
        return request.future

    def _check_size(self, message: Message, what: str) -> None:
        size = message.ByteSize()
        if size > self._max_message_size:
            raise InvalidArgumentError(f"{what} takes {size} bytes, more than {self._max_message_size}")

    def _wait(self, future: concurrent.futures.Future[T]) -> T:
        if self._session.inside and not future.done():
            raise DatasyncError("a callback of a future waits for an answer that only comes after it: use put_async()")
        return future.result()  # it always ends: see SessionManager

    def _resync_of(self, values: Mapping[str, Message]) -> DataResyncRequests:
        with self._lock:
            self._number += 1
            number = self._number
        seq = Seq(originator=self._source or "datasync", seqCreatedSec=self._started, seq=number)
        return resync_requests(values, self._content_type, seq)

    # Called by the link.

    def _full_state(self) -> DataResyncRequests | None:
        if self._state is not None:
            state = self._resync_of(self._state())
        else:
            with self._lock:
                if self._kept is None:
                    return None
                state = _full_state_of(self._kept)
        self._check_size(state, "the full state")
        return state

    def _note(self, request: AnyRequest) -> None:
        """Keep what was applied."""
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


def _full_state_of(puts: Mapping[str, DataChangeRequest]) -> DataResyncRequests:
    """The resync that says what *puts*, by their keys, add up to."""
    requests = DataResyncRequests()
    for key, put in puts.items():
        requests.dataResyncs.add(key=key, content=put.content, content_type=put.content_type)
    return requests


def _refuse_options(key: str, what: str, opts: Sequence[PutOption | DelOption]) -> None:
    if opts:
        raise UnsupportedError(f"{key!r}: {what} over gRPC takes no options: {type(opts[0]).__name__}")
