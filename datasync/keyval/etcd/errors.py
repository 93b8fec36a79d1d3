"""The translation of etcd and grpc errors to datasync errors, in one table.

The table looks at the text first: etcd's messages (``rpctypes/error.go``) are stable across versions, status codes are
not.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import grpc

from datasync.errors import (
    CompactedError,
    InvalidArgumentError,
    PermissionDenied,
    StoreConnectionError,
    StoreError,
    UnknownOutcome,
)
from datasync.keyval.types import LeaseLost, RewoundError

#: Maximum number of characters of a server's message that an error quotes.
MAX_TEXT = 500


class LeaseNotFound(LeaseLost):
    """A lease expired or was revoked."""


@dataclass(frozen=True, slots=True)
class Fault:
    """The meaning of one kind of error.

    *unsent*: the server certainly did nothing, so even a write may be retried. *elsewhere*: another endpoint may
    succeed. *renew*: a new token may succeed. *doubtful*: whatever the code says, a write may have been applied.
    """

    error: type[StoreError] | type[InvalidArgumentError]
    advice: str = ""
    unsent: bool = False
    elsewhere: bool = False
    renew: bool = False
    doubtful: bool = False


_GONE = Fault(StoreConnectionError, elsewhere=True)
_NOT_REACHED = Fault(StoreConnectionError, "is etcd running, and the endpoint right?", unsent=True, elsewhere=True)
_NOT_FOUND = Fault(StoreConnectionError, "check the name in the endpoint", unsent=True, elsewhere=True)

#: A part of the message, and its meaning; the first match applies.
_TEXTS: tuple[tuple[str, Fault], ...] = (
    ("required revision has been compacted", Fault(CompactedError)),
    ("required revision is a future revision", Fault(RewoundError)),
    ("requested lease not found", Fault(LeaseNotFound, unsent=True)),  # etcd grpc-proxy gives it another code
    ("too large lease TTL", Fault(InvalidArgumentError)),
    ("too many operations in txn", Fault(InvalidArgumentError, "split it: --max-txn-ops is 128 by default")),
    ("duplicate key given in txn", Fault(InvalidArgumentError, "a transaction may write a key once")),
    ("request is too large", Fault(InvalidArgumentError, "see --max-request-bytes, 1.5 MiB by default")),
    ("received message larger than max", Fault(InvalidArgumentError, "see --max-request-bytes, 1.5 MiB by default")),
    ("key is not provided", Fault(InvalidArgumentError)),
    ("invalid auth token", Fault(PermissionDenied, "the token was not renewed", unsent=True, renew=True)),
    ("auth store is old", Fault(PermissionDenied, "users or roles keep changing", unsent=True, renew=True)),
    ("revision in header is old", Fault(PermissionDenied, "users or roles keep changing", unsent=True, renew=True)),
    ("invalid user ID or password", Fault(PermissionDenied, "check username and password")),
    ("user name is empty", Fault(PermissionDenied, "this server requires a username and password")),
    ("permission denied", Fault(PermissionDenied, "grant the user's role the key or prefix")),
    # A server says so too after it applied the write that exceeds the quota.
    (
        "database space exceeded",
        Fault(StoreError, "compact, defragment and disarm the alarm, or raise the quota", doubtful=True),
    ),
    (
        "corrupt cluster",
        Fault(StoreError, "the CORRUPT alarm is active: see etcd's data corruption guide", unsent=True),
    ),
    ("too many requests", Fault(StoreConnectionError, unsent=True, elsewhere=True)),
    ("etcdserver: no leader", Fault(StoreConnectionError, "this member has no quorum", unsent=True, elsewhere=True)),
    ("not supported for learner", Fault(StoreConnectionError, "this member is a learner", unsent=True, elsewhere=True)),
    ("raft proposal dropped", Fault(StoreConnectionError, unsent=True, elsewhere=True)),
    ("etcdserver: not capable", Fault(StoreConnectionError, unsent=True, elsewhere=True)),
    # Of a gateway that limits requests: it passed on no whole one.
    (
        "http2 header with status: 413",
        Fault(InvalidArgumentError, "raise the gateway's limit", unsent=True),
    ),
    ("RST_STREAM", Fault(StoreConnectionError, elsewhere=True, doubtful=True)),  # its code is not the server's
    ("failed to connect to all addresses", _NOT_REACHED),
    ("DNS resolution failed", _NOT_FOUND),
    ("Name resolution failure", _NOT_FOUND),
    ("address lookup failed", _NOT_FOUND),
    ("errors resolving", _NOT_FOUND),
)

_CODES: dict[grpc.StatusCode, Fault] = {
    grpc.StatusCode.UNAVAILABLE: _GONE,
    grpc.StatusCode.DEADLINE_EXCEEDED: _GONE,
    grpc.StatusCode.CANCELLED: _GONE,
    grpc.StatusCode.UNAUTHENTICATED: Fault(PermissionDenied, unsent=True, renew=True),
    grpc.StatusCode.PERMISSION_DENIED: Fault(PermissionDenied),
    grpc.StatusCode.INVALID_ARGUMENT: Fault(InvalidArgumentError),
    grpc.StatusCode.UNIMPLEMENTED: Fault(StoreError, "is this an etcd v3 server?"),
    # The stream failed inside grpc, or the data was not a valid message of etcd.
    grpc.StatusCode.INTERNAL: _GONE,
    grpc.StatusCode.UNKNOWN: _GONE,
}

#: Codes by which the server itself rejects a call, so that the outcome of a write is known.
_REFUSALS = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)


# The address that grpc puts before its reason; the message already names it.
_ADDRESS = re.compile(r"^(ipv[46]|dns):\S+: ")


def find_fault(code: grpc.StatusCode | None, text: str) -> Fault:
    """Return the entry of the table for *code* and *text*."""
    for part, fault in _TEXTS:
        if part in text:
            return fault
    return _CODES.get(code, Fault(StoreError)) if code is not None else Fault(StoreError)


def translate(error: grpc.RpcError, what: str, endpoint: str, *, write: bool = False, hint: str = "") -> Exception:
    """Return the datasync error for *error* of the action *what*, possibly a *write*, at *endpoint*.

    A *hint*, the known cause, replaces the advice of the table.
    """
    code, text = error.code(), error.details() or ""
    fault = find_fault(code, text)
    if write and not fault.unsent and (fault.doubtful or code not in _REFUSALS):
        told = "the response of" if fault.doubtful else "no response from"
        reason = _short(code, text) + (f"; {fault.advice}" if fault.advice else "")
        return UnknownOutcome(f"{what}: {told} {endpoint} ({reason}); it may have been applied")
    message = f"{what}: {endpoint}: {_short(code, text)}"
    advice = hint or fault.advice
    return fault.error(f"{message}; {advice}" if advice else message)


def _short(code: grpc.StatusCode | None, text: str) -> str:
    # Only the part after "last error" is informative; the rest repeats it.
    _, _, last = text.rpartition("last error: ")
    text = _ADDRESS.sub("", last.removeprefix("UNKNOWN: ").removeprefix("etcdserver: ").strip())
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return "no response in time"
    return text[:MAX_TEXT] or (code.name.lower() if code is not None else "unknown error")
