"""``msg.DataMsgService`` on a gRPC server: requests become events, and acknowledgements become replies.

``replies`` decides what a reply says; ``grpcsync.error_codes`` has the result codes.

Source: cn-infra ``datasync/grpcsync``; contract C1-C12, C15, C16, C18.
"""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager
from queue import Queue
from typing import Any, NoReturn

import grpc

from datasync.api import DEFAULT_NOTIF_TIMEOUT
from datasync.context import with_traceparent
from datasync.errors import ClosedError, DatasyncError, DecodeError, InvalidArgumentError
from datasync.grpcsync.limits import Limits
from datasync.grpcsync.protocol import (
    PONG,
    SERVICE,
    SESSION_KEY,
    SOURCE_KEY,
    TAKEN_KEY,
    TRACE_KEY,
    serialize,
    token_of,
    value_of,
)
from datasync.grpcsync.server.access import GuardedHandlers, Metadata
from datasync.grpcsync.server.change_stream import SUPERSEDED, ChangeStream, FinalStatus
from datasync.grpcsync.server.fencing import SenderSession, SessionFences
from datasync.grpcsync.server.health import HealthService
from datasync.grpcsync.server.replies import reply_to_resync
from datasync.grpcsync.server.sources import SourceRegistries, SourcesRegistration, TooManySources
from datasync.grpcsync.server.validation import checked_resync, parse
from datasync.grpcsync.status import AdapterStatus, combine
from datasync.runtime.closing import Closable
from datasync.runtime.grpcio import check_grpc
from datasync.runtime.logs import LimitedLog, get_logger
from datasync.runtime.threads import CLOSE_TIMEOUT, Flag, ForkGuard
from datasync.runtime.timeouts import check_seconds
from datasync.runtime.tokens import TokenCheck
from datasync.serializer import Serializer
from datasync.syncbase.change import KeyValBytes
from datasync.syncbase.futures import PropagationFuture
from datasync.syncbase.msg.datamsg_pb2 import DataChangeReply, DataResyncReplies, DataResyncRequests, PingReply
from datasync.syncbase.registry import RESYNC_DONE_TIMEOUT, Registry
from datasync.syncbase.status import TransportState

log = get_logger(__name__)

_CLOSED: FinalStatus = (grpc.StatusCode.UNAVAILABLE, "the datasync adapter is closed")
_NOTHING_TAKEN = ((TAKEN_KEY, "0"),)


class Adapter(Closable):
    """Adds ``msg.DataMsgService`` to a ``grpc.Server`` of the application, and is the watcher of what clients send.

    Each client that names its source (metadata ``datasync-source``) is a separate source with its own state, and its
    resyncs affect only its own keys. Clients without a name share the default source. Subscribers watch all current and
    future sources; ``datasync.current_source`` in the event's context is the source of an event.

    Args:
      server: A server that may be running already. ``close`` leaves it running.
      name: Name of the default source.
      token: A bearer token or several of them; clients must send one. None accepts every client.
      change_timeout, resync_timeout: Seconds to wait for the subscribers before the reply reports that they are late.
        The time of a change starts when the changes before it on its stream have their replies.
      limits: Limits on sizes and numbers.
      serializer: Decodes values that the application itself puts into a registry as bytes.
      health: Also add the ``grpc.health.v1`` service. Leave it off if the application adds its own.

    Raises:
      InvalidArgumentError: *server* is not a ``grpc.Server``, or another argument is unusable.

    Threads: any.
    """

    def __init__(
        self,
        server: grpc.Server,
        *,
        name: str = "grpc",
        token: str | Collection[str] | None = None,
        change_timeout: float = DEFAULT_NOTIF_TIMEOUT,
        resync_timeout: float = RESYNC_DONE_TIMEOUT,
        limits: Limits | None = None,
        serializer: Serializer | None = None,
        health: bool = False,
    ) -> None:
        check_grpc()
        if not isinstance(server, grpc.Server):  # a grpc.aio server would accept the service and lose its requests
            kind = type(server)
            raise InvalidArgumentError(f"server must be a grpc.Server, not {kind.__name__} of {kind.__module__}")
        self._limits = limits or Limits()
        self._tokens = TokenCheck(token)
        self._change_timeout = check_seconds("change_timeout", change_timeout)
        self._resync_timeout = check_seconds("resync_timeout", resync_timeout)
        self._guard = ForkGuard(f"the gRPC adapter {name!r}")
        self._sources = SourceRegistries(name, serializer, self._limits.sources)
        self._sessions = SessionFences()
        self._health = HealthService() if health else None
        self._log = LimitedLog(log)
        # Guards the two below. Reentrant, because the collector may run a finalizer of the user's under it.
        self._lock = threading.RLock()
        self._streams: set[ChangeStream] = set()
        self._closed = False
        server.add_generic_rpc_handlers(self._handlers())

    # The watcher, for the application.

    def watch(
        self,
        resync_name: str,
        change_queue: Queue[Any] | None,
        resync_queue: Queue[Any] | None,
        *key_prefixes: str,
        in_flight: int = 1,
    ) -> SourcesRegistration:
        """Subscribe to all current and future sources; see :meth:`datasync.syncbase.registry.Registry.watch`."""
        queues = (change_queue, resync_queue)
        subscription = SourcesRegistration(self._sources, resync_name, queues, key_prefixes, in_flight)
        self._sources.subscribe(subscription)
        return subscription

    @property
    def registry(self) -> Registry:
        """The registry of the default source."""
        return self._sources.all()[self._sources.default]

    @property
    def registries(self) -> dict[str, Registry]:
        """The registries of all current sources by name."""
        return self._sources.all()

    def forget(self, source: str) -> PropagationFuture:
        """Remove *source*: end its streams, and send subscribers a RESYNC in which its keys are gone.

        A client may use the name again; the source then starts empty.

        Returns:
          The future of the subscribers' acknowledgements.

        Raises:
          InvalidArgumentError: The source does not exist, or it is the default one.
          ClosedError, ForkedError.
        """
        registry = self._sources.remove(source)
        with self._lock:
            streams = [stream for stream in self._streams if stream.registry is registry]
        _end_streams(streams, (grpc.StatusCode.UNAVAILABLE, f"the source {source!r} was removed: open a new stream"))
        return self._sources.retire(registry)

    def status(self) -> AdapterStatus:
        """Return the status of the subscriptions, over all sources and for each of them (C18)."""
        self._guard.check()
        with self._lock:
            streams = len(self._streams)
        return combine(self._sources.default, {name: one.status() for name, one in self.registries.items()}, streams)

    def wait_ready(self, timeout: float) -> None:
        """Return at once, because an adapter does not wait for clients. Raises ``ClosedError`` after ``close``."""
        self._guard.check()
        self.registry.wait_ready(timeout)

    def close(self) -> None:
        """End every stream and subscription. The server keeps running, and later calls fail with UNAVAILABLE.

        Available replies are still sent; the outcome of other requests stays unknown to their clients. May be called
        twice.
        """
        if self._guard.forked:
            return
        with self._lock:
            self._closed = True
            streams = list(self._streams)
        if self._health is not None:
            self._health.stop()
        # Before the registries, whose closing would look like a rejection by the subscribers.
        _end_streams(streams, _CLOSED)
        self._sources.close()

    # The service, called by gRPC. Requests arrive as bytes, so that a parse error gets a status of its own.

    def _handlers(self) -> list[grpc.GenericRpcHandler]:
        methods = {
            "dataChanges": grpc.stream_stream_rpc_method_handler(self._data_changes, response_serializer=serialize),
            "dataResyncs": grpc.unary_unary_rpc_method_handler(self._data_resyncs, response_serializer=serialize),
            "ping": grpc.unary_unary_rpc_method_handler(self._ping, response_serializer=serialize),
        }
        own = GuardedHandlers(SERVICE, methods, self._has_access, self._check_access)
        return [own] if self._health is None else [own, self._health.handler()]

    def _data_changes(self, requests: Iterator[bytes], context: Any) -> Iterator[DataChangeReply]:
        registry = self._admit(context)
        with self._session(registry, context) as session:
            trace = value_of(context.invocation_metadata(), TRACE_KEY)
            stream = ChangeStream(registry, self._limits, self._change_timeout, session, trace)
            end = stream.supersede  # kept, because each access creates a new bound method
            try:
                self._begin(session, context, end)
                yield from self._replies(stream, requests, context)
            finally:
                session.over(end)

    def _replies(self, stream: ChangeStream, requests: Iterator[bytes], context: Any) -> Iterator[DataChangeReply]:
        with self._lock:
            closed = self._closed
            if not closed:
                self._streams.add(stream)
        if closed:
            _abort_untaken(context, _CLOSED)
        try:
            if context.add_callback(stream.client_gone):
                stream.start(requests, _short_address(context.peer()))
                yield from stream.replies()
        finally:
            stream.client_gone()  # also if gRPC drops this generator early
            with self._lock:
                self._streams.discard(stream)
        context.set_trailing_metadata(((TAKEN_KEY, str(stream.taken)),))
        if stream.ended_because is not None:
            _abort(context, *stream.ended_because)

    def _data_resyncs(self, raw: bytes, context: Any) -> DataResyncReplies:
        registry = self._admit(context)
        requests = self._parse_resync(raw, context)
        timeout = self._resync_time(context)
        try:
            values = checked_resync(requests, self._limits)
            future = self._submit_resync(registry, values, timeout, context)
            if not self._wait(future, timeout, context):
                return DataResyncReplies()
            revision = future.result(0).revision
        except DatasyncError as error:
            # A subscription that has just closed raises ClosedError as well, and that is an ordinary result.
            if isinstance(error, ClosedError) and (self._closed or registry.status().state is TransportState.CLOSED):
                _abort(context, *_CLOSED)
            return reply_to_resync(requests, error)
        return reply_to_resync(requests, revision=revision)

    def _submit_resync(
        self, registry: Registry, values: Mapping[str, KeyValBytes], timeout: float, context: Any
    ) -> PropagationFuture:
        trace = with_traceparent(value_of(context.invocation_metadata(), TRACE_KEY), contextvars.Context())
        with self._session(registry, context) as session:
            self._begin(session, context)
            if not session.enter():
                _abort_untaken(context, SUPERSEDED)
            try:
                return registry.submit_resync(values, ctx=trace, timeout=timeout)
            except ClosedError:
                _abort_untaken(context, _CLOSED)
            finally:
                session.leave()

    def _wait(self, future: PropagationFuture, timeout: float, context: Any) -> bool:
        """Wait for *future*, up to *timeout* seconds. False if the client has gone, so that the thread can end."""
        over = Flag()
        future.add_done_callback(lambda _: over.set())
        if not context.add_callback(over.set):
            return False
        over.wait(timeout)
        return bool(context.is_active())

    def _session(self, registry: Registry, context: Any) -> AbstractContextManager[SenderSession]:
        return self._sessions.of(registry.name, value_of(context.invocation_metadata(), SESSION_KEY))

    def _begin(self, session: SenderSession, context: Any, end: Callable[[], None] | None = None) -> None:
        """Abort the call if a newer session has begun, or an older one is stuck in a subscriber's full queue."""
        if not session.begin(end):
            _abort_untaken(context, SUPERSEDED)

    def _resync_time(self, context: Any) -> float:
        """Seconds to wait for subscribers: less than the client's deadline, so that it learns which ones are late."""
        remaining: float | None = context.time_remaining()
        return self._resync_timeout if remaining is None else min(self._resync_timeout, remaining * 0.9)

    def _ping(self, raw: bytes, context: Any) -> PingReply:
        self._check_access(context)
        context.set_trailing_metadata(_NOTHING_TAKEN)  # tells that this server answers each change, unlike cn-infra's
        return PingReply(message=PONG)

    def _parse_resync(self, raw: bytes, context: Any) -> DataResyncRequests:
        if len(raw) > self._limits.message_size:
            text = f"a resync of {len(raw)} bytes exceeds the limit of {self._limits.message_size}"
            _abort_untaken(context, (grpc.StatusCode.RESOURCE_EXHAUSTED, text))
        try:
            return parse(raw, DataResyncRequests)
        except DecodeError as error:
            _abort_untaken(context, (grpc.StatusCode.INVALID_ARGUMENT, str(error)))

    def _admit(self, context: Any) -> Registry:
        """Return the registry of the client's source. Aborts the call if the client has no access."""
        self._check_access(context)
        context.set_trailing_metadata(_NOTHING_TAKEN)  # for a call that is aborted before its first request is read
        name = value_of(context.invocation_metadata(), SOURCE_KEY) or self._sources.default
        try:
            registry = self._sources.find(name)
        except TooManySources as error:
            _abort(context, grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
        except InvalidArgumentError as error:
            _abort(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except ClosedError:
            _abort(context, *_CLOSED)
        context.set_trailing_metadata(())
        return registry

    def _has_access(self, metadata: Metadata) -> bool:
        return self._tokens.accepts(token_of(metadata)) and not (self._guard.forked or self._closed)

    def _check_access(self, context: Any) -> None:
        """Abort the call if its sender has no access, or the adapter was closed since the call began."""
        metadata = context.invocation_metadata()
        if self._has_access(metadata):
            return
        if self._tokens.accepts(token_of(metadata)):
            _abort_untaken(context, _CLOSED)
        self._log.warning("%s: rejected a call from %s: no valid token", self._sources.default, context.peer())
        _abort_untaken(context, (grpc.StatusCode.UNAUTHENTICATED, "a valid token is needed"))


def _end_streams(streams: Collection[ChangeStream], end: FinalStatus) -> None:
    """End all *streams*, then wait for their threads, up to ``CLOSE_TIMEOUT`` in total."""
    for stream in streams:
        stream.end(end, at_once=True)
    deadline = time.monotonic() + CLOSE_TIMEOUT
    for stream in streams:
        if stream.worker is not None:
            stream.worker.close(max(0.0, deadline - time.monotonic()))


def _abort_untaken(context: Any, status: FinalStatus) -> NoReturn:
    context.set_trailing_metadata(_NOTHING_TAKEN)
    _abort(context, *status)


def _abort(context: Any, code: grpc.StatusCode, text: str) -> NoReturn:
    context.abort(code, text)
    raise AssertionError("abort() raises")


def _short_address(peer: str) -> str:
    return peer.rpartition(":")[2] or peer
