"""Calls to etcd over grpc: which endpoint, with which token, how often, and what a failure means.

One channel per endpoint rather than one over all of them: grpc would stay with a member that is up but has no leader,
cannot mix host names with addresses, and does not say which endpoint an error is about.
"""

from __future__ import annotations

import ipaddress
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Generic, Protocol, TypeVar

import grpc
from google.protobuf.message import Message

from datasync.errors import ClosedError, StoreError, UnknownOutcome
from datasync.keyval.etcd import datasync_etcd_pb2 as pb
from datasync.keyval.etcd.config import EtcdConfig
from datasync.keyval.etcd.errors import Fault, find_fault, translate
from datasync.keyval.etcd.tls import explain, make_credentials
from datasync.threads import ForkGuard

log = logging.getLogger(__name__)

RequestT = TypeVar("RequestT", bound=Message)
ResponseT = TypeVar("ResponseT", bound=Message)

#: Seconds between two attempts while no endpoint can be reached.
RETRY_PAUSE = 0.1
#: Seconds without traffic after which grpc pings the server; etcd refuses clients that ping more often than each 5 s.
KEEPALIVE_TIME = 10
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
_AUTHENTICATE: Method[pb.AuthenticateRequest, pb.AuthenticateResponse] = Method(
    "/etcdserverpb.Auth/Authenticate", pb.AuthenticateResponse
)


class Cancellable(Protocol):
    def cancel(self) -> object: ...


class Scope:
    """What one user of the client has under way, so that another thread can call it off.

    Threads: any.
    """

    def __init__(self) -> None:
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

    def cancel(self) -> None:
        """Cancel what runs, and everything that is tried afterwards."""
        with self._lock:
            self._cancelled.set()
            call = self._call
        if call is not None:
            call.cancel()


class Client:
    """A connection to a cluster. Threads: any; no lock is held while the network is waited for.

    Source: contract C15, C17; the defects D60, D62 and D65 of the Go system.
    """

    def __init__(self, config: EtcdConfig) -> None:
        self.config = config
        self._guard = ForkGuard("this etcd store")
        self._endpoints = [_Endpoint(address, config) for address in config.addresses]
        self._lock = threading.Lock()  # guards the fields below
        self._current = 0
        self._closed = False
        self._scopes: set[Scope] = set()
        self._token = ""
        self._closing = Scope()

    @property
    def forked(self) -> bool:
        return self._guard.forked

    def check_usable(self) -> None:
        """Raise ``ForkedError`` in a forked child, ``ClosedError`` after ``close``."""
        self._guard.check()
        if self._closed:
            raise ClosedError("this etcd store is closed")

    def call(
        self,
        method: Method[RequestT, ResponseT],
        request: RequestT,
        what: str,
        *,
        write: bool = False,
        timeout: float | None = None,
        scope: Scope | None = None,
    ) -> ResponseT:
        """Call *method* and return its answer; *what* says in errors what was being done.

        Every call that surely did nothing is tried again, at the next endpoint and for ``dial_timeout`` altogether; a
        read that broke is too; a write that may have been applied never is.

        Raises:
          UnknownOutcome: *write*, and no answer came.
        """
        self.check_usable()
        timeout = self.config.operation_timeout if timeout is None else timeout
        give_up = time.monotonic() + self.config.dial_timeout
        untried = len(self._endpoints)
        renewed = False
        while True:
            endpoint = self._endpoints[self._current]
            token = self._token
            try:
                if self.config.username and not token:
                    token = self._authenticate(endpoint, timeout)
                return endpoint.unary(method, request, timeout, _metadata(token), scope)
            except grpc.RpcError as error:
                fault = self.note(error, endpoint)
                untried -= 1
                if self._closed or (scope is not None and scope.cancelled):
                    raise self._called_off(what, write and not fault.unsent) from error
                if fault.renew and self.config.username and not renewed:
                    renewed = True
                    self._forget(token)
                    continue
                again = fault.elsewhere and (fault.unsent or not write)
                if again and (untried > 0 or time.monotonic() < give_up):
                    if untried <= 0:
                        (scope or self._closing).wait(RETRY_PAUSE)
                    continue
                raise self.error(error, endpoint, what, write=write) from error
            except ValueError as error:  # grpc's word for a channel that was closed meanwhile
                untried -= 1
                if self._closed or untried < -2:
                    raise ClosedError("this etcd store is closed") from error

    def open(
        self, method: Method[RequestT, ResponseT], requests: Iterator[RequestT], scope: Scope
    ) -> tuple[Any, _Endpoint]:
        """Start a stream at the current endpoint: the call, which iterates, and the endpoint it is with.

        The caller has made a successful ``call`` just before, so that the endpoint is a good one and the token fresh.
        """
        self.check_usable()
        endpoint = self._endpoints[self._current]
        try:
            call = endpoint.stream(method, requests, _metadata(self._token))
        except ValueError as error:
            raise ClosedError("this etcd store is closed") from error
        scope.attach(call)
        return call, endpoint

    def new_scope(self) -> Scope:
        """A scope that ``close`` cancels."""
        scope = Scope()
        with self._lock:
            self._scopes.add(scope)
            closed = self._closed
        if closed:
            scope.cancel()
        return scope

    def end_scope(self, scope: Scope) -> None:
        with self._lock:
            self._scopes.discard(scope)

    def note(self, error: grpc.RpcError, endpoint: _Endpoint) -> Fault:
        """What *error* means; when another endpoint may do better, it is that one's turn from now on."""
        code, text = error.code(), error.details() or ""
        fault = find_fault(code, text)
        if fault.elsewhere:
            with self._lock:
                # Only the first of many calls that failed together moves on.
                if self._endpoints[self._current] is endpoint and not self._closed:
                    self._current = (self._current + 1) % len(self._endpoints)
            if self.config.secure and fault.unsent:
                endpoint.reset()  # the next attempt reads the certificates again: they may have been rotated
            log.debug("etcd %s: %s: %s", endpoint.address, code, text)
        return fault

    def error(self, error: grpc.RpcError, endpoint: _Endpoint, what: str, *, write: bool = False) -> Exception:
        """The datasync error for *error*, with a word on TLS where that is what fails."""
        hint = explain(self.config, endpoint.address) if error.code() is grpc.StatusCode.UNAVAILABLE else ""
        listed = ", ".join(e.address for e in self._endpoints) if find_fault(error.code(), "").elsewhere else ""
        return translate(error, what, listed or endpoint.address, write=write, hint=hint)

    def close(self) -> None:
        """Cancel what runs, close the channels; nothing in a forked child."""
        if self._guard.forked:
            return
        with self._lock:
            self._closed = True
            scopes = list(self._scopes)
            self._scopes.clear()
        for scope in (*scopes, self._closing):
            scope.cancel()
        for endpoint in self._endpoints:
            endpoint.reset()

    @property
    def closed(self) -> bool:
        return self._closed

    def _called_off(self, what: str, unknown: bool) -> StoreError | ClosedError:
        if unknown:
            return UnknownOutcome(f"{what}: called off before the answer came; it may have been applied")
        return ClosedError(f"{what}: called off")

    def _authenticate(self, endpoint: _Endpoint, timeout: float) -> str:
        request = pb.AuthenticateRequest(name=self.config.username, password=self.config.password)
        try:
            token = endpoint.unary(_AUTHENTICATE, request, timeout, (), None).token
        except grpc.RpcError as error:
            if "authentication is not enabled" not in (error.details() or ""):
                raise
            log.debug("etcd %s does not ask for a password", endpoint.address)
            return ""
        with self._lock:
            self._token = token
        return token

    def _forget(self, token: str) -> None:
        with self._lock:
            if self._token == token:  # else another thread has a newer one already
                self._token = ""


class _Endpoint:
    """One member's address, and the channel to it while there is one."""

    def __init__(self, address: str, config: EtcdConfig) -> None:
        self.address = address
        self._config = config
        self._lock = threading.Lock()  # guards the two fields below; making a channel does not touch the network
        self._channel: grpc.Channel | None = None
        self._calls: dict[str, Callable[..., Any]] = {}

    def unary(
        self,
        method: Method[RequestT, ResponseT],
        request: RequestT,
        timeout: float,
        metadata: tuple[tuple[str, str], ...],
        scope: Scope | None,
    ) -> ResponseT:
        callee: Any = self._callee(method, "unary_unary")
        if scope is None:
            answer: ResponseT = callee(request, timeout=timeout, metadata=metadata)
            return answer
        future = callee.future(request, timeout=timeout, metadata=metadata)
        scope.attach(future)
        try:
            result: ResponseT = future.result()
        except grpc.FutureCancelledError:
            raise future from None  # a cancelled call is an RpcError itself, with code and details
        return result

    def stream(
        self,
        method: Method[RequestT, ResponseT],
        requests: Iterator[RequestT],
        metadata: tuple[tuple[str, str], ...],
    ) -> Any:
        return self._callee(method, "stream_stream")(requests, metadata=metadata)

    def reset(self) -> None:
        """Close the channel; the next call makes a new one."""
        with self._lock:
            channel, self._channel = self._channel, None
            self._calls = {}
        if channel is not None:
            channel.close()

    def _callee(self, method: Method[Any, Any], shape: str) -> Callable[..., Any]:
        callee = self._calls.get(method.path)
        if callee is None:
            with self._lock:
                if self._channel is None:
                    self._channel = _make_channel(self.address, self._config)
                callee = self._calls[method.path] = getattr(self._channel, shape)(
                    method.path, request_serializer=_serialize, response_deserializer=method.response.FromString
                )
        return callee


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()


def _metadata(token: str) -> tuple[tuple[str, str], ...]:
    # A member without a leader refuses at once with this, instead of keeping its callers in the dark.
    leader = ("hasleader", "true")
    return (leader, ("token", token)) if token else (leader,)


def _make_channel(address: str, config: EtcdConfig) -> grpc.Channel:
    options = [
        ("grpc.keepalive_time_ms", KEEPALIVE_TIME * 1000),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT * 1000),
        ("grpc.http2.ping_timeout_ms", KEEPALIVE_TIMEOUT * 1000),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        # Channels share connections otherwise, and one store's close or backoff would be another's.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 500),
        # How long one attempt to connect may take, whatever the name says.
        ("grpc.min_reconnect_backoff_ms", int(config.dial_timeout * 1000)),
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
