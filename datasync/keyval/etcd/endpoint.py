"""One member of a cluster: its channel, and the calls that etcd has.

One channel per endpoint rather than one over all of them: grpc would stay with a member that is up but has no leader,
cannot mix host names with addresses, and does not say which endpoint an error is about.
"""

from __future__ import annotations

import ipaddress
import threading
from collections.abc import Callable, Iterator
from typing import Any, Generic, Protocol, TypeVar

import grpc
from google.protobuf.message import Message

from datasync.keyval.etcd import datasync_etcd_pb2 as pb
from datasync.keyval.etcd.config import EtcdConfig
from datasync.keyval.etcd.tls import make_credentials

RequestT = TypeVar("RequestT", bound=Message)
ResponseT = TypeVar("ResponseT", bound=Message)

#: Seconds without traffic after which grpc pings the server; etcd refuses clients that ping more often than each 5 s.
KEEPALIVE_TIME = 10
#: Bytes of one answer. A first page of 128 values at etcd's usual limit of 1.5 MiB has 192 MiB; without any bound a
#: server that is none could take all memory with one.
MAX_MESSAGE = 512 * 1024 * 1024
#: Seconds that a ping may take. Both of grpc's limits are set from it: with one alone a dead server shows after 69 s.
KEEPALIVE_TIMEOUT = 3


class Method(Generic[RequestT, ResponseT]):
    """A call of etcd's: its path, and what comes back."""

    __slots__ = ("path", "response")

    def __init__(self, path: str, response: type[ResponseT]) -> None:
        self.path = path
        self.response = response


RANGE: Method[pb.RangeRequest, pb.RangeResponse] = Method("/etcdserverpb.KV/Range", pb.RangeResponse)
TXN: Method[pb.TxnRequest, pb.TxnResponse] = Method("/etcdserverpb.KV/Txn", pb.TxnResponse)
COMPACT: Method[pb.CompactionRequest, pb.CompactionResponse] = Method("/etcdserverpb.KV/Compact", pb.CompactionResponse)
WATCH: Method[pb.WatchRequest, pb.WatchResponse] = Method("/etcdserverpb.Watch/Watch", pb.WatchResponse)
LEASE_GRANT: Method[pb.LeaseGrantRequest, pb.LeaseGrantResponse] = Method(
    "/etcdserverpb.Lease/LeaseGrant", pb.LeaseGrantResponse
)
LEASE_REVOKE: Method[pb.LeaseRevokeRequest, pb.LeaseRevokeResponse] = Method(
    "/etcdserverpb.Lease/LeaseRevoke", pb.LeaseRevokeResponse
)
LEASE_KEEP_ALIVE: Method[pb.LeaseKeepAliveRequest, pb.LeaseKeepAliveResponse] = Method(
    "/etcdserverpb.Lease/LeaseKeepAlive", pb.LeaseKeepAliveResponse
)
STATUS: Method[pb.StatusRequest, pb.StatusResponse] = Method("/etcdserverpb.Maintenance/Status", pb.StatusResponse)
AUTHENTICATE: Method[pb.AuthenticateRequest, pb.AuthenticateResponse] = Method(
    "/etcdserverpb.Auth/Authenticate", pb.AuthenticateResponse
)


class Cancellable(Protocol):
    def cancel(self) -> object: ...


class Scope:
    """What one user of the client has under way, so that another thread can call it off.

    Args:
      patient: False where whoever waits has pauses of his own, so that what cannot be reached is not tried again here.

    Threads: any.
    """

    def __init__(self, *, patient: bool = True) -> None:
        self.patient = patient
        self._lock = threading.Lock()  # guards _call against a cancel between its start and its entry here
        self._call: Cancellable | None = None
        self._cancelled = threading.Event()

    @property
    def cancelled(self) -> bool:
        return self._cancelled.is_set()

    def wait(self, seconds: float) -> None:
        """Wait, but not longer than until ``cancel``."""
        self._cancelled.wait(seconds)

    def attach(self, call: Cancellable) -> None:
        """Make *call* the one that ``cancel`` cancels."""
        with self._lock:
            self._call = call
            late = self._cancelled.is_set()
        if late:
            call.cancel()

    def detach(self) -> None:
        """Let go of a call that is over."""
        with self._lock:
            self._call = None

    def cancel(self) -> None:
        """Cancel what runs, and everything that is tried afterwards."""
        with self._lock:
            self._cancelled.set()
            call = self._call
        if call is not None:
            call.cancel()


class Begun(Generic[ResponseT]):
    """A call to *endpoint* that was begun before its answer is wanted. Threads: one."""

    def __init__(self, endpoint: Endpoint, call: Any) -> None:
        self.endpoint = endpoint
        self._call = call

    def answer(self) -> ResponseT:
        """Wait for it, once; raises as ``Endpoint.unary``."""
        call, self._call = self._call, None
        answer: ResponseT = _answer_of(call)
        return answer

    def cancel(self) -> None:
        """It is not wanted any more."""
        if self._call is not None:
            self._call.cancel()
            self._call = None


class Endpoint:
    """One member's address, and the channel to it while there is one."""

    def __init__(self, address: str, config: EtcdConfig) -> None:
        self.address = address
        self._config = config
        self._lock = threading.Lock()  # guards the fields below; making a channel does not touch the network
        self._channel: grpc.Channel | None = None
        self._calls: dict[str, Callable[..., Any]] = {}
        self._busy = 0

    def unary(
        self,
        method: Method[RequestT, ResponseT],
        request: RequestT,
        timeout: float,
        metadata: tuple[tuple[str, str], ...],
        scope: Scope | None,
    ) -> ResponseT:
        callee: Any = self._callee(method, "unary_unary")
        try:
            if scope is None:
                answer: ResponseT = callee(request, timeout=timeout, metadata=metadata)
                return answer
            future = callee.future(request, timeout=timeout, metadata=metadata)
            scope.attach(future)
            answer = _answer_of(future)
            return answer
        finally:
            if scope is not None:
                scope.detach()
            self._ended()

    def stream(
        self,
        method: Method[RequestT, ResponseT],
        requests: Iterator[RequestT],
        metadata: tuple[tuple[str, str], ...],
    ) -> Any:
        callee = self._callee(method, "stream_stream")
        return self._counted(lambda: callee(requests, metadata=metadata))

    def begin(
        self,
        method: Method[RequestT, ResponseT],
        request: RequestT,
        timeout: float,
        metadata: tuple[tuple[str, str], ...],
    ) -> Begun[ResponseT]:
        """As ``unary``, without waiting."""
        callee: Any = self._callee(method, "unary_unary")
        return Begun(self, self._counted(lambda: callee.future(request, timeout=timeout, metadata=metadata)))

    def reset(self) -> None:
        """Close the channel; the next call makes a new one."""
        with self._lock:
            channel, self._channel = self._channel, None
            self._calls = {}
        if channel is not None:
            channel.close()

    def rest(self) -> None:
        """Close the channel unless it is in use: one that could not connect goes on knocking, and never waits long."""
        with self._lock:
            if self._busy:
                return
            channel, self._channel = self._channel, None
            self._calls = {}
        if channel is not None:
            channel.close()

    def _callee(self, method: Method[Any, Any], shape: str) -> Callable[..., Any]:
        """What makes the call, which has begun with that: ``_ended`` is to follow."""
        with self._lock:
            callee = self._calls.get(method.path)
            if callee is None:
                if self._channel is None:
                    self._channel = _make_channel(self.address, self._config)
                callee = self._calls[method.path] = getattr(self._channel, shape)(
                    method.path, request_serializer=_serialize, response_deserializer=method.response.FromString
                )
            self._busy += 1
        return callee

    def _counted(self, start: Callable[[], Any]) -> Any:
        """The call that *start* makes; ``_ended`` follows when it is over."""
        try:
            call = start()
        except BaseException:
            self._ended()
            raise
        if not call.add_callback(self._ended):
            self._ended()  # it is over already
        return call

    def _ended(self) -> None:
        with self._lock:
            self._busy -= 1


def _answer_of(call: Any) -> Any:
    try:
        return call.result()
    except grpc.FutureCancelledError:
        pass
    raise call  # a cancelled call is an RpcError itself, with code and details


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()


def _make_channel(address: str, config: EtcdConfig) -> grpc.Channel:
    options = [
        ("grpc.keepalive_time_ms", KEEPALIVE_TIME * 1000),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT * 1000),
        ("grpc.http2.ping_timeout_ms", KEEPALIVE_TIMEOUT * 1000),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.max_receive_message_length", MAX_MESSAGE),
        ("grpc.max_send_message_length", -1),
        # Identity only: how large a compressed message is shows when it has taken the memory.
        ("grpc.compression_enabled_algorithms_bitset", 1),
        # Channels share connections otherwise, and one store's close or backoff would be another's.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 500),
        # How long one attempt to connect may take, whatever the name says.
        ("grpc.min_reconnect_backoff_ms", min(int(config.dial_timeout * 1000), 2**31 - 1)),
        ("grpc.dns_min_time_between_resolutions_ms", 500),
        # A proxy set for the web is not meant for the store.
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
