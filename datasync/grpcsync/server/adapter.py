"""``msg.DataMsgService`` on a gRPC server: peers push changes, a watcher delivers them, the answers are the replies.

Source: cn-infra ``datasync/grpcsync``; contract section 5, C1-C12, C15, C16, C18; D43-D46.
"""

from __future__ import annotations

import contextvars
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager
from queue import Queue
from typing import Any, NoReturn

import grpc

from datasync.api import DEFAULT_NOTIF_TIMEOUT
from datasync.errors import ClosedError, DatasyncError, DecodeError, InvalidArgumentError
from datasync.grpcsync.error_codes import mark_resync
from datasync.grpcsync.limits import Limits
from datasync.grpcsync.protocol import (
    DATA_CHANGES,
    DATA_RESYNCS,
    PING,
    PONG,
    SESSION_KEY,
    SOURCE_KEY,
    TAKEN_KEY,
    serialize,
    token_of,
    value_of,
)
from datasync.grpcsync.server.change_stream import SUPERSEDED, ChangeStream, FinalStatus
from datasync.grpcsync.server.fencing import SenderSession, SessionFences
from datasync.grpcsync.server.health import HealthService
from datasync.grpcsync.server.sources import SourceRegistries, SourcesRegistration, TooManySources
from datasync.grpcsync.server.validation import checked_resync, parse
from datasync.grpcsync.status import AdapterStatus, combine
from datasync.runtime.closing import Closable
from datasync.runtime.grpcio import check_grpc
from datasync.runtime.threads import CLOSE_TIMEOUT, ForkGuard
from datasync.runtime.tokens import TokenCheck
from datasync.serializer import Serializer
from datasync.syncbase.change import KeyValBytes
from datasync.syncbase.futures import PropagationFuture
from datasync.syncbase.msg.convert import resync_replies
from datasync.syncbase.msg.datamsg_pb2 import DataChangeReply, DataResyncReplies, DataResyncRequests, PingReply
from datasync.syncbase.registry import RESYNC_DONE_TIMEOUT, Registry
from datasync.syncbase.status import TransportState

log = logging.getLogger(__name__)

_CLOSING: FinalStatus = (grpc.StatusCode.UNAVAILABLE, "datasync is closed here")
_NOTHING_TAKEN = ((TAKEN_KEY, "0"),)


class Adapter(Closable):
    """Makes a ``grpc.Server`` that the application owns a source of changes; ``close`` leaves that server running.

    Every peer that names itself (metadata ``datasync-source``) is a source of its own, with its own state, and a full
    state that it sends concerns its own keys only; peers that do not are one default source together. Subscribers
    watch all sources of now and later, and read in the event's context whose event it is.

    Args:
      server: Not started yet, or running: the service is added to it.
      name: Of the default source.
      token: Or several of them: peers must show one as ``authorization: Bearer …``.
      change_timeout, resync_timeout: Seconds that subscribers have for their answer before the peer is told that it did
        not come. The clock of a change starts when those before it on its stream are answered.
      limits: What a peer may ask for.
      serializer: Reads values that the application itself puts into a registry as bytes.
      health: Add ``grpc.health.v1`` too; leave it off where the application has its own.

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
        if not isinstance(server, grpc.Server):  # one of grpc.aio would take the service, and lose what is sent
            kind = type(server)
            raise InvalidArgumentError(f"server must be a grpc.Server, not {kind.__name__} of {kind.__module__}")
        self._limits = limits or Limits()
        self._tokens = TokenCheck(token)
        self._change_timeout = change_timeout
        self._resync_timeout = resync_timeout
        self._guard = ForkGuard(f"the gRPC adapter {name!r}")
        self._sources = SourceRegistries(name, serializer, self._limits.sources)
        self._sessions = SessionFences()
        self._health = HealthService() if health else None
        self._lock = threading.Lock()  # guards the two below
        self._streams: set[ChangeStream] = set()
        self._closed = False
        server.add_generic_rpc_handlers((_ServiceHandler(self._methods()),))

    # The watcher.

    def watch(
        self,
        resync_name: str,
        change_queue: Queue[Any] | None,
        resync_queue: Queue[Any] | None,
        *key_prefixes: str,
        in_flight: int = 1,
    ) -> SourcesRegistration:
        """Subscribe to every source; see :meth:`datasync.syncbase.registry.Registry.watch`."""
        subscription = SourcesRegistration(
            self._sources, resync_name, change_queue, resync_queue, key_prefixes, in_flight
        )
        self._sources.subscribe(subscription)
        return subscription

    @property
    def registry(self) -> Registry:
        """The state of the default source."""
        return self._sources.all()[self._sources.default]

    @property
    def registries(self) -> dict[str, Registry]:
        """The state of every source by its name, as they are now."""
        return self._sources.all()

    def forget(self, source: str) -> PropagationFuture:
        """Free the place of *source*: its streams end, and a RESYNC tells subscribers that its keys are gone.

        It may come back, with nothing. Returns the subscribers' answer.

        Raises:
          InvalidArgumentError: There is no such source, or it is the default one.
          ClosedError, ForkedError.
        """
        registry = self._sources.take(source)
        with self._lock:
            streams = [stream for stream in self._streams if stream.registry is registry]
        _end(streams, (grpc.StatusCode.UNAVAILABLE, f"the source {source!r} was forgotten: open another stream"))
        return self._sources.dismiss(registry)

    def status(self) -> AdapterStatus:
        """How the sources and the subscriptions are doing, over all and one by one (C18)."""
        self._guard.check()
        with self._lock:
            streams = len(self._streams)
        return combine(self._sources.default, {name: one.status() for name, one in self.registries.items()}, streams)

    def wait_ready(self, timeout: float) -> None:
        """Return: whoever pushes is not waited for. Raises ``ClosedError`` after ``close``."""
        self._guard.check()
        self.registry.wait_ready(timeout)

    def close(self) -> None:
        """End every stream and subscription; later calls of peers get UNAVAILABLE. The server goes on.

        Answers that are there are still sent; a request that was taken and is not answered has an unknown outcome for
        its peer. May be called twice.
        """
        if self._guard.forked:
            return
        with self._lock:
            self._closed = True
            streams = list(self._streams)
        if self._health is not None:
            self._health.stop()
        # Before the registries, whose end would look like an answer of the subscribers.
        _end(streams, _CLOSING)
        self._sources.close()

    # The service. Requests come as bytes, so that what cannot be parsed gets a status that says so.

    def _methods(self) -> dict[str, grpc.RpcMethodHandler]:
        return {
            DATA_CHANGES: grpc.stream_stream_rpc_method_handler(self._data_changes, response_serializer=serialize),
            DATA_RESYNCS: grpc.unary_unary_rpc_method_handler(self._data_resyncs, response_serializer=serialize),
            PING: grpc.unary_unary_rpc_method_handler(self._ping, response_serializer=serialize),
            **(self._health.handlers() if self._health is not None else {}),
        }

    def _data_changes(self, requests: Iterator[bytes], context: Any) -> Iterator[DataChangeReply]:
        registry = self._admit(context)
        with self._session(registry, context) as session:
            stream = ChangeStream(registry, self._limits, self._change_timeout, session)
            end = stream.supersede  # one object: a bound method is a new one each time
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
            context.set_trailing_metadata(_NOTHING_TAKEN)
            _refuse(context, *_CLOSING)
        try:
            if context.add_callback(stream.client_gone):
                stream.start(requests, _short(context.peer()))
                yield from stream.replies()
        finally:
            stream.client_gone()  # also when grpc drops this generator half-way
            with self._lock:
                self._streams.discard(stream)
        context.set_trailing_metadata(((TAKEN_KEY, str(stream.taken)),))
        if stream.ended_because is not None:
            _refuse(context, *stream.ended_because)

    def _data_resyncs(self, raw: bytes, context: Any) -> DataResyncReplies:
        registry = self._admit(context)
        requests = self._parse_resync(raw, context)
        patience = self._patience(context)
        try:
            values = checked_resync(requests, self._limits)
            with self._session(registry, context) as session:
                self._begin(session, context)
                future = self._submit_resync(registry, values, patience, session, context)
            if not self._wait(future, patience, context):
                return DataResyncReplies()
            future.result(0)
        except ClosedError as error:
            # Said of a subscription that has left just now as well, and that is an answer like any other.
            if self._closed or registry.status().state is TransportState.CLOSED:
                _refuse(context, *_CLOSING)
            return mark_resync(resync_replies(requests, error), error)
        except DatasyncError as error:
            return mark_resync(resync_replies(requests, error), error)
        return resync_replies(requests)

    def _submit_resync(
        self,
        registry: Registry,
        values: Mapping[str, KeyValBytes],
        timeout: float,
        session: SenderSession,
        context: Any,
    ) -> PropagationFuture:
        if not session.enter():
            context.set_trailing_metadata(_NOTHING_TAKEN)
            _refuse(context, *SUPERSEDED)
        try:
            return registry.submit_resync(values, ctx=contextvars.Context(), timeout=timeout)
        finally:
            session.leave()

    def _wait(self, future: PropagationFuture, timeout: float, context: Any) -> bool:
        """Until *future* is done or the time is over; False when the peer has gone, who then needs no thread."""
        over = threading.Event()
        future.add_done_callback(lambda _: over.set())
        if not context.add_callback(over.set):
            return False
        over.wait(timeout)
        return bool(context.is_active())

    def _session(self, registry: Registry, context: Any) -> AbstractContextManager[SenderSession]:
        return self._sessions.of(registry.name, value_of(context.invocation_metadata(), SESSION_KEY))

    def _begin(self, session: SenderSession, context: Any, end: Callable[[], None] | None = None) -> None:
        """Refuse the call where a newer session has begun, or an older one is stuck in a subscriber's queue."""
        if not session.begin(end):
            context.set_trailing_metadata(_NOTHING_TAKEN)
            _refuse(context, *SUPERSEDED)

    def _patience(self, context: Any) -> float:
        """Seconds for the subscribers: a peer that gives up earlier shall still hear who was too slow."""
        remaining: float | None = context.time_remaining()
        return self._resync_timeout if remaining is None else min(self._resync_timeout, remaining * 0.9)

    def _ping(self, raw: bytes, context: Any) -> PingReply:
        self._check_access(context)
        return PingReply(message=PONG)

    def _parse_resync(self, raw: bytes, context: Any) -> DataResyncRequests:
        if len(raw) > self._limits.message_size:
            text = f"a resync of {len(raw)} bytes is larger than {self._limits.message_size}"
            _refuse(context, grpc.StatusCode.RESOURCE_EXHAUSTED, text)
        try:
            return parse(raw, DataResyncRequests)
        except DecodeError as error:
            _refuse(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))

    def _admit(self, context: Any) -> Registry:
        """The registry of the peer's source; ends the call when the peer may not speak."""
        context.set_trailing_metadata(_NOTHING_TAKEN)  # for whatever refuses it before it is read
        self._check_access(context)
        name = value_of(context.invocation_metadata(), SOURCE_KEY) or self._sources.default
        try:
            registry = self._sources.find(name)
        except TooManySources as error:
            _refuse(context, grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
        except InvalidArgumentError as error:
            _refuse(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except ClosedError:
            _refuse(context, *_CLOSING)
        context.set_trailing_metadata(())
        return registry

    def _check_access(self, context: Any) -> None:
        if not self._tokens.accepts(token_of(context.invocation_metadata())):
            log.warning("%s: a call of %s without a valid token", self._sources.default, context.peer())
            _refuse(context, grpc.StatusCode.UNAUTHENTICATED, "a valid token is needed")
        if self._guard.forked or self._closed:
            _refuse(context, *_CLOSING)


class _ServiceHandler(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpcio has no annotations
    """Finds a method by its path, and leaves all others to whom else the server has."""

    def __init__(self, methods: dict[str, grpc.RpcMethodHandler]) -> None:
        self._methods = methods

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        return self._methods.get(handler_call_details.method)


def _end(streams: Collection[ChangeStream], end: FinalStatus) -> None:
    """End all, then wait for all, for ``CLOSE_TIMEOUT`` altogether."""
    for stream in streams:
        stream.end(end, at_once=True)
    deadline = time.monotonic() + CLOSE_TIMEOUT
    for stream in streams:
        if stream.worker is not None:
            stream.worker.close(max(0.0, deadline - time.monotonic()))


def _refuse(context: Any, code: grpc.StatusCode, text: str) -> NoReturn:
    context.abort(code, text)
    raise AssertionError("abort() raises")


def _short(peer: str) -> str:
    return peer.rpartition(":")[2] or peer
