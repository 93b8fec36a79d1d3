"""One member of a cluster: its address, its channel and the calls on it.

Each endpoint has its own channel. With one channel for all endpoints grpc would stay with a member that is up but has
no leader, could not mix host names with addresses, and would not report the endpoint of an error.
"""

from __future__ import annotations

import ipaddress
import math
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Generic
from weakref import WeakKeyDictionary

import grpc

from datasync.keyval.etcd import datasync_etcd_pb2 as pb
from datasync.keyval.etcd.cancel_scope import CancelScope
from datasync.keyval.etcd.config import EtcdConfig
from datasync.keyval.etcd.methods import STATUS, Method, RequestT, ResponseT
from datasync.keyval.etcd.tls import make_credentials
from datasync.runtime.threads import Flag

Metadata = tuple[tuple[str, str], ...]

#: Seconds without traffic after which grpc pings the server; etcd rejects clients that ping more often than every 5 s.
KEEPALIVE_TIME = 10
#: Bytes of one response. A first page of 128 values at etcd's default limit of 1.5 MiB has 192 MiB. Without a limit, a
#: server that is not an etcd could use up all memory with one response.
MAX_MESSAGE = 512 * 1024 * 1024
#: Seconds that a ping may take. It sets both of grpc's limits: with one alone, a dead server is detected after 69 s.
KEEPALIVE_TIMEOUT = 3
#: Seconds after a response for which its connection counts as open.
HEARD_FOR = 10.0
#: Codes that come from grpc itself when no response arrives.
_UNHEARD = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
    }
)


class Endpoint:
    """The address of one member, and the channel to it while one is open."""

    def __init__(self, address: str, config: EtcdConfig) -> None:
        self.address = address
        self._config = config
        self._lock = threading.Lock()  # guards the fields below; creating a channel does not use the network
        self._channel: grpc.Channel | None = None
        self._calls: dict[str, Callable[..., Any]] = {}
        self._running: set[object] = set()  # one for each call
        # What stands in that set for a call that ends in a thread of grpc. Weak: a call that is forgotten is cancelled.
        self._counted: WeakKeyDictionary[object, object] = WeakKeyDictionary()
        self._heard = -math.inf

    def recently_heard(self) -> bool:
        """Return True if the server responded a short time ago, and nothing has failed since."""
        return time.monotonic() - self._heard < HEARD_FOR

    def unheard(self) -> None:
        """Record that a call failed without a response of the server."""
        self._heard = -math.inf

    def greet(self, timeout: float, metadata: Metadata, scope: CancelScope | None) -> None:
        """Connect, with a call that changes nothing. Return if the server responds in whatever way."""
        try:
            self.unary(STATUS, pb.StatusRequest(), timeout, metadata, scope)
        except grpc.RpcError as error:
            if error.code() in _UNHEARD:
                raise

    def unary(
        self,
        method: Method[RequestT, ResponseT],
        request: RequestT,
        timeout: float,
        metadata: Metadata,
        scope: CancelScope | None,
    ) -> ResponseT:
        running = object()
        callee: Any = self._callee(method, "stream_stream" if method.exchange else "unary_unary", running)
        try:
            if method.exchange:
                answer: ResponseT = _exchange(callee, request, timeout, metadata, scope) or method.response()
                return answer
            if scope is None:
                response: ResponseT = callee(request, timeout=timeout, metadata=metadata)
            else:
                future = callee.future(request, timeout=timeout, metadata=metadata)
                scope.attach(future)
                response = _result_of(future)
            self._heard = time.monotonic()
            return response
        except grpc.RpcError as error:
            if error.code() not in _UNHEARD:
                self._heard = time.monotonic()
            raise
        finally:
            if scope is not None:
                scope.detach()
            self._end(running)

    def stream(self, method: Method[RequestT, Any], requests: Iterator[RequestT], metadata: Metadata) -> Any:
        """Start a stream and return its call, which iterates over the responses."""
        running = object()
        callee = self._callee(method, "stream_stream", running)
        return self._count(running, lambda: callee(requests, metadata=metadata))

    def begin(
        self, method: Method[RequestT, ResponseT], request: RequestT, timeout: float, metadata: Metadata
    ) -> PendingCall[ResponseT]:
        """Start the call of ``unary``."""
        running = object()
        callee: Any = self._callee(method, "unary_unary", running)
        start = partial(callee.future, request, timeout=timeout, metadata=metadata)
        return PendingCall(self, self._count(running, start))

    def reset(self, *, only_idle: bool = False) -> None:
        """Close the channel; the next call creates a new one.

        With *only_idle* a channel in use stays open. grpc reconnects an unused channel forever, with short delays, so
        an unreachable endpoint must not keep one.
        """
        with self._lock:
            if only_idle and self._running:
                return
            channel, self._channel = self._channel, None
            self._calls = {}
            self._heard = -math.inf
        if channel is not None:
            channel.close()

    def ended(self, call: object) -> None:
        """Count *call*, of ``stream`` or ``begin``, as ended; without effect the second time.

        grpc tells it too, but from a thread of its own, and after the error: a ``reset`` in between would do nothing.
        """
        with self._lock:
            running = self._counted.get(call)
        self._end(running)

    def leave(self, call: object) -> None:
        """Count *call* as ended, and close the channel if it was the last one and the server is lost."""
        self.ended(call)
        if self._heard == -math.inf:
            self.reset(only_idle=True)

    def _callee(self, method: Method[Any, Any], shape: str, running: object) -> Callable[..., Any]:
        """Return the callable of *method* and count its call as *running*. The caller ensures that ``_end`` follows."""
        with self._lock:
            callee = self._calls.get(method.path)
            if callee is None:
                if self._channel is None:
                    self._channel = _make_channel(self.address, self._config)
                callee = self._calls[method.path] = getattr(self._channel, shape)(
                    method.path,
                    request_serializer=method.request.SerializeToString,
                    response_deserializer=method.response.FromString,
                )
            self._running.add(running)
        return callee

    def _count(self, running: object, start: Callable[[], Any]) -> Any:
        """Return the call that *start* creates, which is *running* until it has finished."""
        try:
            call = start()
        except BaseException:
            self._end(running)
            raise
        with self._lock:
            self._counted[call] = running
        if not call.add_callback(partial(self._end, running)):
            self._end(running)  # it has already finished
        return call

    def _end(self, running: object) -> None:
        with self._lock:
            self._running.discard(running)


class PendingCall(Generic[ResponseT]):
    """A call to *endpoint* that was sent before its response is needed. Threads: one."""

    def __init__(self, endpoint: Endpoint, call: Any) -> None:
        self.endpoint = endpoint
        self._call = call

    def result(self) -> ResponseT:
        """Wait for the response. Call it once; raises what ``Endpoint.unary`` raises."""
        call, self._call = self._call, None
        result: ResponseT = _result_of(call)
        return result

    def cancel(self) -> None:
        """Cancel the call unless its result was taken."""
        if self._call is not None:
            self._call.cancel()
            self._call = None


def _exchange(callee: Any, request: Any, timeout: float, metadata: Metadata, scope: CancelScope | None) -> Any:
    """Send *request* on a stream of its own; return the first response, None if the server ends the stream without one.

    Our side stays open until then: etcd's grpc-proxy ends a stream that is half-closed before it has responded.
    """
    responded = Flag()

    def requests() -> Iterator[Any]:
        yield request
        responded.wait()

    call = callee(requests(), timeout=timeout, metadata=metadata)
    if scope is not None:
        scope.attach(call)
    try:
        return next(call, None)
    finally:
        responded.set()
        call.cancel()


def _result_of(call: Any) -> Any:
    try:
        return call.result()
    except grpc.FutureCancelledError:
        pass
    raise call  # a cancelled call is itself an RpcError with code and details


def _make_channel(address: str, config: EtcdConfig) -> grpc.Channel:
    options = [
        ("grpc.keepalive_time_ms", KEEPALIVE_TIME * 1000),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT * 1000),
        ("grpc.http2.ping_timeout_ms", KEEPALIVE_TIMEOUT * 1000),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.max_receive_message_length", MAX_MESSAGE),
        ("grpc.max_send_message_length", -1),
        # Identity only: the size of a compressed message is known only after it has used the memory.
        ("grpc.compression_enabled_algorithms_bitset", 1),
        # Otherwise channels share connections, and the close or backoff of one store would affect another.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 500),
        # Limits one connection attempt, despite its name.
        ("grpc.min_reconnect_backoff_ms", min(int(config.dial_timeout * 1000), 2**31 - 1)),
        ("grpc.dns_min_time_between_resolutions_ms", 500),
        # A proxy configured for the web is not meant for the store.
        ("grpc.enable_http_proxy", 0),
    ]
    target = _target(address)
    if config.secure:
        return grpc.secure_channel(target, make_credentials(config), options)
    return grpc.insecure_channel(target, options)


def _target(address: str) -> str:
    host = address.rpartition(":")[0].strip("[]")
    try:
        return f"ipv{ipaddress.ip_address(host).version}:{address}"
    except ValueError:
        return f"dns:///{address}"
