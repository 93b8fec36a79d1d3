"""One member of a cluster: its channel, and the calls that etcd has.

One channel per endpoint rather than one over all of them: grpc would stay with a member that is up but has no leader,
cannot mix host names with addresses, and does not say which endpoint an error is about.
"""

from __future__ import annotations

import ipaddress
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
from google.protobuf.message import Message

from datasync.keyval.etcd.cancel_scope import CancelScope
from datasync.keyval.etcd.config import EtcdConfig
from datasync.keyval.etcd.methods import Method, RequestT, ResponseT
from datasync.keyval.etcd.tls import make_credentials

#: Seconds without traffic after which grpc pings the server; etcd refuses clients that ping more often than each 5 s.
KEEPALIVE_TIME = 10
#: Bytes of one answer. A first page of 128 values at etcd's usual limit of 1.5 MiB has 192 MiB; without any bound a
#: server that is none could take all memory with one.
MAX_MESSAGE = 512 * 1024 * 1024
#: Seconds that a ping may take. Both of grpc's limits are set from it: with one alone a dead server shows after 69 s.
KEEPALIVE_TIMEOUT = 3


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
        scope: CancelScope | None,
    ) -> ResponseT:
        callee: Any = self._callee(method, "unary_unary")
        try:
            if scope is None:
                answer: ResponseT = callee(request, timeout=timeout, metadata=metadata)
                return answer
            future = callee.future(request, timeout=timeout, metadata=metadata)
            scope.attach(future)
            answer = result_of(future)
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
    ) -> Any:
        """Start the call of ``unary`` and return its future."""
        callee: Any = self._callee(method, "unary_unary")
        return self._counted(lambda: callee.future(request, timeout=timeout, metadata=metadata))

    def reset(self, *, only_idle: bool = False) -> None:
        """Close the channel; the next call creates a new one.

        With *only_idle* a channel in use stays open. grpc reconnects an idle channel without end and with short
        pauses, so an endpoint that could not be reached must not keep one.
        """
        with self._lock:
            if only_idle and self._busy:
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


def result_of(call: Any) -> Any:
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
