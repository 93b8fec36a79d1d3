"""Errors of a server or the client library, as errors of datasync.

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
class Meaning:
    """The meaning of an error: its class and advice. *elsewhere*: another server may do it, or this one a bit later."""

    error: type[DatasyncError]
    advice: str = ""
    elsewhere: bool = False


_NO_RIGHT = Meaning(PermissionDenied, "the page on Redis lists the rights that a user needs")
#: A part of the text, and its meaning; the first match applies. The server did nothing in all of these cases.
_TEXTS: tuple[tuple[str, Meaning], ...] = (
    ("NOAUTH", Meaning(PermissionDenied, "give user and password in the URL")),
    ("HELLO must be called with", Meaning(PermissionDenied, "give user and password in the URL")),
    ("Authentication required", Meaning(PermissionDenied, "give user and password in the URL")),
    ("WRONGPASS", Meaning(PermissionDenied, "check user and password")),
    ("invalid username-password", Meaning(PermissionDenied, "check user and password")),
    ("invalid password", Meaning(PermissionDenied, "check user and password")),
    ("NOPERM", _NO_RIGHT),
    ("no permissions", _NO_RIGHT),
    # What scripts are told.
    (
        "The user executing the script",
        _NO_RIGHT,
    ),
    ("ACL failure", _NO_RIGHT),
    ("DB index is out of range", Meaning(InvalidArgumentError, "the server has no such database; see its 'databases'")),
    ("Invalid Database", Meaning(InvalidArgumentError, "the server has no such database; see its 'databases'")),
    ("SELECT is not allowed in cluster mode", Meaning(InvalidArgumentError, "a cluster has database 0 only")),
    ("WRONGTYPE", Meaning(StoreError, "the key belongs to another program; nothing was written")),
    ("command not allowed when used memory", Meaning(StoreError, "'maxmemory' is reached; nothing was written")),
    ("OOM", Meaning(StoreError, "'maxmemory' is reached; nothing was written")),
    ("MISCONF", Meaning(StoreError, "the server cannot save to its disk and takes no writes")),
    ("NOREPLICAS", Meaning(StoreConnectionError, "too few replicas for 'min-replicas-to-write'", elsewhere=True)),
    ("READONLY", Meaning(StoreConnectionError, "this server is a replica", elsewhere=True)),
    ("read only replica", Meaning(StoreConnectionError, "this server is a replica", elsewhere=True)),
    ("LOADING", Meaning(StoreConnectionError, "the server is loading its data", elsewhere=True)),
    ("loading the dataset", Meaning(StoreConnectionError, "the server is loading its data", elsewhere=True)),
    ("MASTERDOWN", Meaning(StoreConnectionError, elsewhere=True)),
    ("CLUSTERDOWN", Meaning(StoreConnectionError, "the cluster does not serve this slot", elsewhere=True)),
    ("Hash slot not served", Meaning(StoreConnectionError, "the cluster does not serve this slot", elsewhere=True)),
    ("The cluster is down", Meaning(StoreConnectionError, elsewhere=True)),
    ("TRYAGAIN", Meaning(StoreConnectionError, "the slot is being moved", elsewhere=True)),
    ("during rehashing of slot", Meaning(StoreConnectionError, "the slot is being moved", elsewhere=True)),
    ("non local key", Meaning(StoreConnectionError, "the slot is being moved", elsewhere=True)),
    ("BUSY ", Meaning(StoreConnectionError, "the server runs a script of another client", elsewhere=True)),
    ("max number of clients", Meaning(StoreConnectionError, "raise 'maxclients'", elsewhere=True)),
    ("cluster support disabled", Meaning(InvalidArgumentError, "the server is not in a cluster: use redis://")),
    ("CROSSSLOT", Meaning(InvalidArgumentError, "use redis+cluster://")),
    ("Protocol error", Meaning(InvalidArgumentError, "see 'proto-max-bulk-len'; nothing was written")),
    ("string exceeds maximum", Meaning(InvalidArgumentError, "see 'proto-max-bulk-len'; nothing was written")),
    ("unknown command", Meaning(UnsupportedError, "Redis 6.2, Valkey 7.2 or a later version is needed")),
    ("syntax error", Meaning(UnsupportedError, "Redis 6.2, Valkey 7.2 or a later version is needed")),
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
    for part, means in _TEXTS:
        if part in text:
            advice = f"; {means.advice}" if means.advice else ""
            error = means.error(f"{what}: {server}: {text[:MAX_TEXT]}{advice}")
            return Elsewhere(error) if means.elsewhere else error
    return StoreError(f"{what}: {server}: {text[:MAX_TEXT]}")


def _text(error: Exception) -> str:
    text = str(error)
    code = next((code for kind, code in _BY_CLASS if isinstance(error, kind)), "")
    if isinstance(error, exceptions.TimeoutError):
        return "no response in time"
    return f"{code} {text}" if code and not text.startswith(code) else text
