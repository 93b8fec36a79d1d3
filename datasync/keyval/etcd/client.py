"""The etcd client: chooses the endpoint, authenticates, retries, and translates failures."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from typing import Any
from weakref import WeakSet

import grpc

from datasync.errors import ClosedError, InvalidArgumentError, StoreError, UnknownOutcome
from datasync.keyval.etcd import datasync_etcd_pb2 as pb
from datasync.keyval.etcd.cancel_scope import CancelScope
from datasync.keyval.etcd.config import EtcdConfig
from datasync.keyval.etcd.endpoint import Endpoint, Metadata, PendingCall
from datasync.keyval.etcd.errors import Fault, find_fault, translate
from datasync.keyval.etcd.keys import unexpected_response
from datasync.keyval.etcd.methods import AUTHENTICATE, Method, RequestT, ResponseT
from datasync.keyval.etcd.tls import explain
from datasync.runtime.grpcio import forget_traceback
from datasync.runtime.logs import get_logger
from datasync.runtime.threads import ForkGuard

log = get_logger(__name__)

#: Seconds between two attempts while no endpoint is reachable.
RETRY_PAUSE = 0.1
#: Seconds for which the cause of a failed TLS handshake is remembered.
HINT_FOR = 300.0


class EtcdClient:
    """A connection to a cluster.

    Threads: any; no lock is held during network calls.
    Source: contract C15, C17.
    """

    def __init__(self, config: EtcdConfig) -> None:
        self.config = config
        self._guard = ForkGuard("this etcd store")
        self._endpoints = [Endpoint(address, config) for address in config.addresses]
        self._lock = threading.Lock()  # guards the fields below
        self._current = 0
        self._closed = False
        self._scopes: WeakSet[CancelScope] = WeakSet()  # weak: a stream that is never read must not stay registered
        self._token = ""
        self._closing = CancelScope()
        self._hints: dict[Endpoint, tuple[float, str]] = {}

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
        scope: CancelScope | None = None,
        pending: PendingCall[ResponseT] | None = None,
    ) -> ResponseT:
        """Call *method* and return its response. Errors name the action as *what*.

        A call that certainly had no effect is retried at the next endpoint, for up to ``dial_timeout``. So is a read
        whose connection failed. A write that may have been applied is never retried. With a *scope* that is not
        patient, each endpoint is tried once. The first attempt is *pending*, if ``begin`` has sent it already.

        Raises:
          UnknownOutcome: *write* is True and no response arrived, or one that an etcd server never sends.
        """
        self.check_usable()
        timeout = self.config.operation_timeout if timeout is None else timeout
        give_up = time.monotonic() + self.config.dial_timeout
        untried = len(self._endpoints)
        renewed = False
        missed: set[Endpoint] = set()
        while True:
            endpoint = self._endpoints[self._current] if pending is None else pending.endpoint
            token = self._token
            sent = pending is not None
            try:
                if pending is not None:
                    first, pending = pending, None
                    return _checked(first.result(), what, write)
                if self.config.username and not token:
                    token = self._authenticate(endpoint, timeout)
                if write and not endpoint.recently_heard():
                    endpoint.greet(timeout, _metadata(token), scope)  # so that a deadline means: sent
                sent = True
                return _checked(endpoint.unary(method, request, timeout, _metadata(token), scope), what, write)
            except grpc.RpcError as error:
                fault = self.record_failure(error, endpoint)
                unsent = fault.unsent or not sent
                untried -= 1
                if self._closed or (scope is not None and scope.cancelled):
                    raise self._cancelled_error(what, write and not unsent) from error
                if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                    # A token refers to a position in the server's log. A server restored from an older copy delays
                    # every call with a later token until its log has reached that position.
                    self._discard_token(token)
                if fault.renew and self.config.username and not renewed:
                    renewed = True
                    self._discard_token(token)
                    continue
                again = fault.elsewhere and (unsent or not write)
                # A connection that was reset after the request was sent leaves a channel that reconnects too.
                if unsent or error.code() is grpc.StatusCode.UNAVAILABLE:
                    missed.add(endpoint)
                # An endpoint that did not respond in time is not retried; an unreachable one may come up. A stream is
                # not retried here, because its reader has a backoff of its own.
                patient = error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED and time.monotonic() < give_up
                patient = patient and (scope is None or scope.patient)
                if again and (untried > 0 or patient):
                    if untried <= 0:
                        # What one address stands for may be many members: the next connection may lead to another one.
                        endpoint.reset(only_idle=True)
                        self._closing.wait(RETRY_PAUSE)
                    continue
                for one in missed:
                    one.reset(only_idle=True)
                raise self.error(error, endpoint, what, write=write and not unsent) from error
            except InvalidArgumentError:  # is a ValueError too: a TLS file of a new channel cannot be read
                raise
            except ValueError as error:  # raised by grpc when the channel was closed meanwhile
                untried -= 1
                if self._closed or untried < -2:
                    raise ClosedError("this etcd store is closed") from error

    def begin(
        self, method: Method[RequestT, ResponseT], request: RequestT, timeout: float
    ) -> PendingCall[ResponseT] | None:
        """Send the first attempt of a ``call`` early. Return None on failure; ``call`` then raises the error."""
        if self._closed or self._guard.forked:
            return None
        try:
            return self._endpoints[self._current].begin(method, request, timeout, _metadata(self._token))
        except ValueError:  # the channel was closed meanwhile, or a TLS file cannot be read
            return None

    def open_stream(
        self, method: Method[RequestT, ResponseT], requests: Iterator[RequestT], scope: CancelScope
    ) -> tuple[Any, Endpoint]:
        """Start a stream at the current endpoint. Return the call, which iterates over responses, and the endpoint.

        A successful ``call`` must precede it: then the endpoint is reachable and the token valid.
        """
        self.check_usable()
        endpoint = self._endpoints[self._current]
        try:
            call = endpoint.stream(method, requests, _metadata(self._token))
        except InvalidArgumentError:
            raise
        except ValueError as error:
            raise ClosedError("this etcd store is closed") from error
        scope.attach(call)
        return call, endpoint

    def new_scope(self, *, patient: bool = True) -> CancelScope:
        """Return a scope that ``close`` cancels; *patient* as in ``CancelScope``."""
        scope = CancelScope(patient=patient)
        with self._lock:
            self._scopes.add(scope)
            closed = self._closed
        if closed:
            scope.cancel()
        return scope

    def end_scope(self, scope: CancelScope) -> None:
        scope.detach()
        with self._lock:
            self._scopes.discard(scope)

    def record_failure(self, error: grpc.RpcError, endpoint: Endpoint) -> Fault:
        """Classify *error*. If another endpoint may succeed, make it the current one."""
        forget_traceback(error)
        endpoint.ended(error)  # an error of grpc is the call that it ended
        code, text = error.code(), error.details() or ""
        fault = find_fault(code, text)
        if fault.elsewhere:
            endpoint.unheard()
            with self._lock:
                # Of many calls that failed together only the first moves on.
                if self._endpoints[self._current] is endpoint and not self._closed:
                    self._current = (self._current + 1) % len(self._endpoints)
            if self.config.secure and fault.unsent:
                endpoint.reset()  # the next attempt reads the certificates again, in case they were rotated
            log.debug("etcd %s: %s: %s", endpoint.address, code, text)
        return fault

    def _hint(self, endpoint: Endpoint) -> str:
        """Return the cause of a failed handshake, remembered so that a retrying reader does not connect twice."""
        now = time.monotonic()
        asked, hint = self._hints.get(endpoint, (-math.inf, ""))
        if now - asked >= HINT_FOR:
            self._hints[endpoint] = (now, hint)  # before the handshake, so that no other thread starts one too
            hint = explain(self.config, endpoint.address)
            self._hints[endpoint] = (now, hint)
        return hint

    def error(self, error: grpc.RpcError, endpoint: Endpoint, what: str, *, write: bool = False) -> Exception:
        """Return the datasync error for *error*, with the cause of a failed TLS handshake."""
        text = error.details() or ""
        # The connection was made and then failed: a handshake of our own can find out why.
        broken = "failed to connect" in text and "refused" not in text and "timed out" not in text
        hint = self._hint(endpoint) if broken else ""
        listed = ", ".join(e.address for e in self._endpoints) if find_fault(error.code(), "").elsewhere else ""
        return translate(error, what, listed or endpoint.address, write=write, hint=hint)

    def close(self) -> None:
        """Cancel running calls and close the channels. Does nothing in a forked child."""
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

    def _cancelled_error(self, what: str, unknown: bool) -> StoreError | ClosedError:
        if unknown:
            return UnknownOutcome(f"{what}: cancelled before the response arrived; it may have been applied")
        return ClosedError(f"{what}: cancelled")

    def _authenticate(self, endpoint: Endpoint, timeout: float) -> str:
        request = pb.AuthenticateRequest(name=self.config.username, password=self.config.password)
        try:
            token = endpoint.unary(AUTHENTICATE, request, timeout, (), None).token
        except grpc.RpcError as error:
            if "authentication is not enabled" not in (error.details() or ""):
                raise
            log.debug("etcd %s does not require a password", endpoint.address)
            return ""
        if not token:
            raise unexpected_response(f"authenticating at {endpoint.address}")
        with self._lock:
            self._token = token
        return token

    def _discard_token(self, token: str) -> None:
        with self._lock:
            if self._token == token:  # otherwise another thread already has a newer one
                self._token = ""


def _checked(response: ResponseT, what: str, write: bool) -> ResponseT:
    """Return *response* if it is one of a cluster: each has a header, while an empty message may be anybody's."""
    header: pb.ResponseHeader = response.header  # type: ignore[attr-defined]  # of every response of etcd
    if header.cluster_id:
        return response
    if write:
        raise UnknownOutcome(f"{what}: a response that is not etcd's; it may have been applied")
    raise unexpected_response(what)


def _metadata(token: str) -> Metadata:
    # With this a member without a leader fails the call at once instead of delaying it.
    leader = ("hasleader", "true")
    return (leader, ("token", token)) if token else (leader,)
