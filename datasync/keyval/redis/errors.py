"""What a server or the client library says, as errors of datasync.

One table says for each text what it means, and whether a write may have been applied.
"""

from __future__ import annotations

from dataclasses import dataclass

from redis import exceptions

from datasync.errors import (
    DatasyncError,
    InvalidArgumentError,
    PermissionDenied,
    StoreConnectionError,
    StoreError,
    UnknownOutcome,
    UnsupportedError,
)

#: Characters of a server's text in a message.
MAX_TEXT = 200


@dataclass(frozen=True, slots=True)
class Fault:
    """The meaning of an error: its class and advice. *elsewhere*: another server may do it, or this one a bit later."""

    error: type[DatasyncError]
    advice: str = ""
    elsewhere: bool = False


#: A part of the text, and its meaning; the first match applies. The server did nothing in all of these cases.
_TEXTS: tuple[tuple[str, Fault], ...] = (
    ("NOAUTH", Fault(PermissionDenied, "give user and password in the URL")),
    ("HELLO must be called with", Fault(PermissionDenied, "give user and password in the URL")),
    ("Authentication required", Fault(PermissionDenied, "give user and password in the URL")),
    ("WRONGPASS", Fault(PermissionDenied, "check user and password")),
    ("invalid username-password", Fault(PermissionDenied, "check user and password")),
    ("invalid password", Fault(PermissionDenied, "check user and password")),
    ("NOPERM", Fault(PermissionDenied, "the page on Redis lists the rights that a user needs")),
    ("no permissions", Fault(PermissionDenied, "the page on Redis lists the rights that a user needs")),
    # What scripts are told.
    ("The user executing the script", Fault(PermissionDenied, "the page on Redis lists the rights that a user needs")),
    ("ACL failure", Fault(PermissionDenied, "the page on Redis lists the rights that a user needs")),
    ("DB index is out of range", Fault(InvalidArgumentError, "the server has no such database; see its 'databases'")),
    ("Invalid Database", Fault(InvalidArgumentError, "the server has no such database; see its 'databases'")),
    ("SELECT is not allowed in cluster mode", Fault(InvalidArgumentError, "a cluster has database 0 only")),
    ("WRONGTYPE", Fault(StoreError, "the key belongs to another program; nothing was written")),
    ("command not allowed when used memory", Fault(StoreError, "'maxmemory' is reached; nothing was written")),
    ("OOM", Fault(StoreError, "'maxmemory' is reached; nothing was written")),
    ("MISCONF", Fault(StoreError, "the server cannot save to its disk and takes no writes")),
    ("NOREPLICAS", Fault(StoreConnectionError, "too few replicas for 'min-replicas-to-write'", elsewhere=True)),
    ("READONLY", Fault(StoreConnectionError, "this server is a replica", elsewhere=True)),
    ("read only replica", Fault(StoreConnectionError, "this server is a replica", elsewhere=True)),
    ("LOADING", Fault(StoreConnectionError, "the server is loading its data", elsewhere=True)),
    ("loading the dataset", Fault(StoreConnectionError, "the server is loading its data", elsewhere=True)),
    ("MASTERDOWN", Fault(StoreConnectionError, elsewhere=True)),
    ("CLUSTERDOWN", Fault(StoreConnectionError, "the cluster does not serve this slot", elsewhere=True)),
    ("Hash slot not served", Fault(StoreConnectionError, "the cluster does not serve this slot", elsewhere=True)),
    ("The cluster is down", Fault(StoreConnectionError, elsewhere=True)),
    ("TRYAGAIN", Fault(StoreConnectionError, "the slot is being moved", elsewhere=True)),
    ("during rehashing of slot", Fault(StoreConnectionError, "the slot is being moved", elsewhere=True)),
    ("non local key", Fault(StoreConnectionError, "the slot is being moved", elsewhere=True)),
    ("BUSY ", Fault(StoreConnectionError, "the server runs a script of another client", elsewhere=True)),
    ("max number of clients", Fault(StoreConnectionError, "raise 'maxclients'", elsewhere=True)),
    ("cluster support disabled", Fault(InvalidArgumentError, "the server is not in a cluster: use redis://")),
    ("CROSSSLOT", Fault(InvalidArgumentError, "use redis+cluster://")),
    ("Protocol error", Fault(InvalidArgumentError, "see 'proto-max-bulk-len'; nothing was written")),
    ("string exceeds maximum", Fault(InvalidArgumentError, "see 'proto-max-bulk-len'; nothing was written")),
    ("unknown command", Fault(UnsupportedError, "Redis 6.2, Valkey 7.2 or a later version is needed")),
    ("syntax error", Fault(UnsupportedError, "Redis 6.2, Valkey 7.2 or a later version is needed")),
)
_BY_CLASS: tuple[tuple[type[Exception], str], ...] = (
    (exceptions.BusyLoadingError, "LOADING"),
    (exceptions.AuthenticationError, "WRONGPASS"),
    (exceptions.NoPermissionError, "NOPERM"),
    (exceptions.ReadOnlyError, "READONLY"),
    (exceptions.OutOfMemoryError, "OOM"),
    (exceptions.TryAgainError, "TRYAGAIN"),
    (exceptions.ClusterDownError, "CLUSTERDOWN"),
    (exceptions.MasterDownError, "MASTERDOWN"),
    (exceptions.ClusterCrossSlotError, "CROSSSLOT"),
)


class Elsewhere(Exception):
    """The server did nothing: the same call may succeed at another one, or a bit later. Does not leave the driver.

    *address* is where, if the server said so; *asking*: for this call only.
    """

    def __init__(self, error: DatasyncError, address: tuple[str, int] | None = None, *, asking: bool = False) -> None:
        super().__init__(str(error))
        self.error = error
        self.address = address
        self.asking = asking


def translate(error: Exception, what: str, server: str, *, token: str | None = None) -> DatasyncError | Elsewhere:
    """Return the error for what the client library raised in *what* at *server*; *token* if it may have written."""
    if isinstance(error, exceptions.AskError):  # MovedError is one, too
        gone = StoreConnectionError(f"{what}: {server} no longer has the slot of this store")
        return Elsewhere(gone, (error.host or "", error.port), asking=not isinstance(error, exceptions.MovedError))
    text = _text(error)
    if isinstance(error, (exceptions.ResponseError, exceptions.AuthenticationError, exceptions.BusyLoadingError)):
        return meaning(text, what, server)
    if not isinstance(error, (exceptions.RedisError, OSError)):
        return StoreError(f"{what}: {server}: unexpected response: {type(error).__name__}")
    if "Invalid Database" in text or "max number of clients" in text:
        return meaning(text, what, server)
    if token is not None:
        return UnknownOutcome(f"{what}: no response from {server} ({text}); it may have been applied", token)
    return StoreConnectionError(f"{what}: {server}: {text}")


def meaning(text: str, what: str, server: str) -> DatasyncError | Elsewhere:
    """Return the error for the *text* of a server that did nothing."""
    for part, fault in _TEXTS:
        if part in text:
            advice = f"; {fault.advice}" if fault.advice else ""
            found = fault.error(f"{what}: {server}: {text[:MAX_TEXT]}{advice}")
            return Elsewhere(found) if fault.elsewhere else found
    return StoreError(f"{what}: {server}: {text[:MAX_TEXT]}")


def _text(error: Exception) -> str:
    text = str(error)
    code = next((code for kind, code in _BY_CLASS if isinstance(error, kind)), "")
    if isinstance(error, exceptions.TimeoutError):
        return "no response in time"
    return f"{code} {text}" if code and not text.startswith(code) else text
