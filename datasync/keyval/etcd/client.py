"""Calls to etcd over grpc: which endpoint, with which token, how often, and what a failure means."""

from __future__ import annotations

import logging
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
from datasync.keyval.etcd.endpoint import Endpoint
from datasync.keyval.etcd.errors import Fault, find_fault, translate
from datasync.keyval.etcd.methods import AUTHENTICATE, Method, RequestT, ResponseT
from datasync.keyval.etcd.pending_call import PendingCall
from datasync.keyval.etcd.tls import explain
from datasync.runtime.grpcio import forget_traceback
from datasync.runtime.threads import ForkGuard

log = logging.getLogger(__name__)

#: Seconds between two attempts while no endpoint can be reached.
RETRY_PAUSE = 0.1
#: Seconds for which a hint on why an endpoint cannot be talked to stays good.
HINT_FOR = 300.0


class EtcdClient:
    """A connection to a cluster. Threads: any; no lock is held while the network is waited for.

    Source: contract C15, C17; the defects D60, D62 and D65 of the Go system.
    """

    def __init__(self, config: EtcdConfig) -> None:
        self.config = config
        self._guard = ForkGuard("this etcd store")
        self._endpoints = [Endpoint(address, config) for address in config.addresses]
        self._lock = threading.Lock()  # guards the fields below
        self._current = 0
        self._closed = False
        self._scopes: WeakSet[CancelScope] = WeakSet()  # a stream that nobody ever read takes its scope with it
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
        """Call *method* and return its answer; *what* says in errors what was being done.

        Where it was *begun* already, that is the first attempt.

        Every call that surely did nothing is tried again, at the next endpoint and for ``dial_timeout`` altogether; a
        read that broke is too; a write that may have been applied never is. One with a *scope* is tried once at each.

        Raises:
          UnknownOutcome: *write*, and no answer came.
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
            try:
                if pending is not None:
                    first, pending = pending, None
                    return first.result()
                if self.config.username and not token:
                    token = self._authenticate(endpoint, timeout)
                return endpoint.unary(method, request, timeout, _metadata(token), scope)
            except grpc.RpcError as error:
                fault = self.note(error, endpoint)
                untried -= 1
                if self._closed or (scope is not None and scope.cancelled):
                    raise self._called_off(what, write and not fault.unsent) from error
                if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                    # A token names a place in the server's log. One that was restored from a copy lets every call with
                    # a younger token wait until its log has come to there.
                    self._forget(token)
                if fault.renew and self.config.username and not renewed:
                    renewed = True
                    self._forget(token)
                    continue
                again = fault.elsewhere and (fault.unsent or not write)
                if fault.unsent:
                    missed.add(endpoint)
                # An endpoint that did not answer in time had its chance; one that cannot be reached may come up. A
                # stream has a reader behind it, whose own pauses are long enough.
                patient = error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED and time.monotonic() < give_up
                patient = patient and (scope is None or scope.patient)
                if again and (untried > 0 or patient):
                    if untried <= 0:
                        self._closing.wait(RETRY_PAUSE)
                    continue
                for one in missed:
                    one.reset(only_idle=True)
                raise self.error(error, endpoint, what, write=write) from error
            except InvalidArgumentError:  # a ValueError as well: the files for TLS, which are read for a new channel
                raise
            except ValueError as error:  # grpc's word for a channel that was closed meanwhile
                untried -= 1
                if self._closed or untried < -2:
                    raise ClosedError("this etcd store is closed") from error

    def begin(
        self, method: Method[RequestT, ResponseT], request: RequestT, timeout: float
    ) -> PendingCall[ResponseT] | None:
        """Begin what ``call`` is to go on with; None where nothing can be begun, and ``call`` will tell why."""
        if self._closed or self._guard.forked:
            return None
        try:
            endpoint = self._endpoints[self._current]
            return PendingCall(endpoint, endpoint.begin(method, request, timeout, _metadata(self._token)))
        except ValueError:  # closed meanwhile, or files for TLS that cannot be read
            return None

    def open(
        self, method: Method[RequestT, ResponseT], requests: Iterator[RequestT], scope: CancelScope
    ) -> tuple[Any, Endpoint]:
        """Start a stream at the current endpoint: the call, which iterates, and the endpoint it is with.

        The caller has made a successful ``call`` just before, so that the endpoint is a good one and the token fresh.
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
        """A scope that ``close`` cancels; *patient* as in ``CancelScope``."""
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

    def note(self, error: grpc.RpcError, endpoint: Endpoint) -> Fault:
        """What *error* means; when another endpoint may do better, it is that one's turn from now on."""
        forget_traceback(error)
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

    def _hint(self, endpoint: Endpoint) -> str:
        """Why a handshake fails, asked now and then: a reader that tries for hours would knock twice each time."""
        now = time.monotonic()
        asked, hint = self._hints.get(endpoint, (-math.inf, ""))
        if now - asked >= HINT_FOR:
            self._hints[endpoint] = (now, hint)  # first: who else asks meanwhile does not knock as well
            hint = explain(self.config, endpoint.address)
            self._hints[endpoint] = (now, hint)
        return hint

    def error(self, error: grpc.RpcError, endpoint: Endpoint, what: str, *, write: bool = False) -> Exception:
        """The datasync error for *error*, with a word on TLS where that is what fails."""
        text = error.details() or ""
        # A connection that came about and failed: then it is worth a handshake of our own to ask why.
        broken = "failed to connect" in text and "refused" not in text and "timed out" not in text
        hint = self._hint(endpoint) if broken else ""
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

    def _authenticate(self, endpoint: Endpoint, timeout: float) -> str:
        request = pb.AuthenticateRequest(name=self.config.username, password=self.config.password)
        try:
            token = endpoint.unary(AUTHENTICATE, request, timeout, (), None).token
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


def _metadata(token: str) -> tuple[tuple[str, str], ...]:
    # A member without a leader refuses at once with this, instead of keeping its callers in the dark.
    leader = ("hasleader", "true")
    return (leader, ("token", token)) if token else (leader,)
