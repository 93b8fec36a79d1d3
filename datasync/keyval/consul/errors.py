"""The translation of Consul's responses to errors, in one table: the text first, because 500 means many things."""

from __future__ import annotations

from typing import NamedTuple

from datasync.errors import (
    DatasyncError,
    InvalidArgumentError,
    PermissionDenied,
    StoreConnectionError,
    StoreError,
    UnknownOutcome,
)
from datasync.runtime.http_client.connections import ReceivedResponse

#: Maximum number of characters of a server's message that an error quotes.
MAX_TEXT = 300


class _Fault(NamedTuple):
    """The meaning of a response. *unsent*: the server certainly did nothing, so the outcome of a write is known."""

    error: type[DatasyncError]
    advice: str = ""
    unsent: bool = True


_TEXTS: tuple[tuple[str, _Fault], ...] = (
    ("ACL not found", _Fault(PermissionDenied, "check the token")),
    (
        "Permission denied",
        _Fault(PermissionDenied, "grant the token the key or prefix; values that expire need session rights"),
    ),
    ("ACL support disabled", _Fault(PermissionDenied, "this server has no ACLs: use no token")),
    ("No cluster leader", _Fault(StoreConnectionError, "the servers have no quorum, or have just started")),
    ("No path to datacenter", _Fault(StoreError, "check the option datacenter")),
    ("Invalid Session TTL", _Fault(InvalidArgumentError, "a TTL is at least session_ttl_min, 10 s by default")),
    ("too many operations", _Fault(InvalidArgumentError, "split the transaction")),
    ("too large", _Fault(InvalidArgumentError, "see txn_max_req_len and kv_max_value_size of the server")),
)
_STATUSES: dict[int, _Fault] = {
    400: _Fault(InvalidArgumentError),
    401: _Fault(PermissionDenied, "check the token"),
    403: _Fault(PermissionDenied, "check the token"),
    404: _Fault(StoreError, "is the address a Consul agent?"),
    405: _Fault(StoreError, "is the address a Consul agent?"),
    413: _Fault(InvalidArgumentError, "see txn_max_req_len of the server, or the limit of the gateway"),
    429: _Fault(StoreConnectionError, "the server limits requests"),
}
_REDIRECT = _Fault(StoreError, "the client does not follow redirects")
_OTHER = _Fault(StoreConnectionError, unsent=False)


def translate(what: str, name: str, response: ReceivedResponse, *, write: bool = False) -> DatasyncError:
    """Return the error for *response* of *name* to the action *what*, possibly a *write*."""
    text = _text(response)
    fault = next((fault for part, fault in _TEXTS if part in text), None)
    if fault is None:
        redirects = 300 <= response.status < 400
        fault = _REDIRECT if redirects else _STATUSES.get(response.status, _OTHER)
    message = f"{what}: {name}: status {response.status}" + (f", {text}" if text else "")
    if write and not fault.unsent:
        return UnknownOutcome(f"{message}; it may have been applied")
    return fault.error(f"{message}; {fault.advice}" if fault.advice else message)


def unexpected_response(what: str, name: str) -> StoreConnectionError:
    """Return the error for a response that a Consul agent never sends."""
    return StoreConnectionError(
        f"{what}: the response of {name} does not match the request; is the address a Consul agent?"
    )


def _text(response: ReceivedResponse) -> str:
    """Return the first line of a message of Consul; a page of a gateway is not quoted."""
    text = response.data[: 4 * MAX_TEXT].decode("utf-8", "replace").strip()
    return "" if text.startswith(("<", "{", "[")) else text.partition("\n")[0][:MAX_TEXT]
