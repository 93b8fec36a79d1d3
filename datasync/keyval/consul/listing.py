"""Responses with keys: their index and their pairs, compared with what was asked for.

Consul leaves out what the token may not read, so a listing does not tell a key that was deleted from one that is
hidden. ``check_hidden`` asks.

Source: contract C13, C23.
"""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Collection, Mapping
from itertools import islice
from typing import Any, NamedTuple

from datasync.errors import DatasyncError, PermissionDenied, StoreError
from datasync.keyval.consul.client import ConsulClient
from datasync.keyval.consul.errors import unexpected_response
from datasync.keyval.consul.keys import KeyRange, path_of
from datasync.keyval.types import KeyValue
from datasync.runtime.http_client.connections import ReceivedResponse

#: Rights that are asked for in one request, and keys that are asked for one by one where that is not possible.
RIGHTS, SINGLE_RIGHTS = 500, 32


class HeldKey(NamedTuple):
    """A key as Consul has it. *session* is that to which it is bound, or empty."""

    value: bytes
    revision: int
    session: str

    def __repr__(self) -> str:
        return f"<{len(self.value)} bytes of revision {self.revision}>"


class Looked(NamedTuple):
    """A key that was looked up, None if it is not there, and the store's index then."""

    held: HeldKey | None
    revision: int


def index_of(response: ReceivedResponse, what: str, name: str) -> int:
    """Return the index of *response*: at least 1, as Consul's documentation wants it."""
    text = response.headers.get("X-Consul-Index", "")
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise unexpected_response(what, name)
    return max(int(text), 1)


def look_up(client: ConsulClient, bare: str, *query: str) -> Looked:
    """Return what Consul has under the key *bare*."""
    what = f"reading {bare!r}"
    response = client.call("GET", path_of(bare), what, *query, accept=(404,))
    return read_held(response, bare, what, client.name)


def read_held(response: ReceivedResponse, bare: str, what: str, name: str) -> Looked:
    """Return what the *response* of *name* tells about the key *bare*."""
    index = index_of(response, what, name)
    if response.status == 404:
        return Looked(None, index)
    found = _entries(response, what, name)
    if len(found) != 1 or found[0].get("Key") != bare:
        raise unexpected_response(what, name)
    try:
        entry = found[0]
        return Looked(HeldKey(_value(entry), int(entry["ModifyIndex"]), entry.get("Session") or ""), index)
    except (ValueError, TypeError, KeyError):
        pass
    raise unexpected_response(what, name)


def get_range(client: ConsulClient, keys: KeyRange, what: str) -> ReceivedResponse:
    """Return the response with all pairs of a range, read from the leader."""
    return client.call("GET", path_of(keys.listable), what, "recurse", "consistent", accept=(404,))


def list_keys(client: ConsulClient, keys: KeyRange, what: str) -> tuple[int, dict[str, KeyValue]]:
    """Return the index and the keys of a range, without values and revisions, read from the leader."""
    response = client.call("GET", path_of(keys.listable), what, "keys", "consistent", accept=(404,))
    index = index_of(response, what, client.name)
    if response.status == 404:
        return index, {}
    found: dict[str, KeyValue] = {}
    try:
        for bare in json.loads(response.data):
            if not bare.startswith(keys.listable):
                raise ValueError
            if (key := keys.decode(bare)) is not None:
                found[key] = KeyValue(key, b"", 0)
        return index, found
    except (ValueError, TypeError, AttributeError, RecursionError):
        pass
    raise unexpected_response(what, client.name)


def pairs_of(response: ReceivedResponse, keys: KeyRange, what: str, name: str) -> dict[str, KeyValue]:
    """Return the pairs of a range from *response*. Raises ``StoreConnectionError`` if it is of something else."""
    if response.status == 404:
        return {}
    found: dict[str, KeyValue] = {}
    try:
        for entry in _entries(response, what, name):
            bare = entry["Key"]
            if not bare.startswith(keys.listable):
                raise ValueError
            key = keys.decode(bare)
            if key is not None:
                found[key] = KeyValue(key, _value(entry), int(entry["ModifyIndex"]))
        return found
    except (ValueError, TypeError, KeyError, AttributeError):
        pass
    raise unexpected_response(what, name)


def sessions_of(response: ReceivedResponse, keys: KeyRange, what: str, name: str) -> dict[str, str]:
    """Return the session of each key in *response* that is bound to one, of those that ``pairs_of`` finds."""
    entries = _entries(response, what, name) if response.status != 404 else []
    bound = ((keys.decode(entry["Key"]), entry.get("Session")) for entry in entries)
    return {key: session for key, session in bound if key is not None and isinstance(session, str) and session}


def check_hidden(client: ConsulClient, keys: KeyRange, vanished: Collection[str], empty: bool) -> None:
    """Check that the token may read the *vanished* keys, or the prefix if a listing without them is *empty*.

    Raises:
      PermissionDenied: It may not, so the listing says nothing about them.
    """
    if vanished:
        wanted = [key[len(keys.slash) :] for key in vanished]
    elif empty:
        wanted = [keys.bare]
    else:
        return
    for place in range(0, len(wanted), RIGHTS):
        denied = _denied(client, wanted[place : place + RIGHTS])
        if denied is not None:
            raise PermissionDenied(
                f"{client.name}: no permission to read {keys.slash + denied!r}, which Consul leaves out of listings;"
                " grant the token the key or prefix"
            )


def _denied(client: ConsulClient, wanted: list[str]) -> str | None:
    """Return one of the *wanted* keys or prefixes that the token may not read, or None."""
    what = "checking the rights of the token"
    asked = [{"Resource": "key", "Access": "read", "Segment": segment} for segment in wanted]
    response = client.call("POST", "/v1/internal/acl/authorize", what, body=asked, accept=(400, 401, 404, 405))
    if response.status == 401 and b"ACL support disabled" in response.data:
        return None
    if response.status != 200:  # not every version and gateway has it
        return _denied_singly(client, wanted)
    try:
        told: list[Mapping[str, Any]] = json.loads(response.data)
        segments = [one.get("Segment", "") for one in told]  # Consul leaves out an empty one
        if segments == wanted:
            return next(
                (segment for segment, one in zip(segments, told, strict=True) if one["Allow"] is not True), None
            )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass
    raise unexpected_response(what, client.name)


def _denied_singly(client: ConsulClient, wanted: list[str]) -> str | None:
    for bare in islice(filter(None, wanted), SINGLE_RIGHTS):
        try:
            client.call("GET", path_of(bare), f"reading {bare!r}", accept=(404,))
        except PermissionDenied:
            return bare
        except StoreError as error:
            if error.retryable:
                raise
        except DatasyncError:
            pass  # a key that no path can have
    return None


def _entries(response: ReceivedResponse, what: str, name: str) -> list[dict[str, Any]]:
    try:
        told = json.loads(response.data)
        if isinstance(told, list) and all(isinstance(one, dict) for one in told):
            return told
    except (ValueError, RecursionError):
        pass
    raise unexpected_response(what, name)


def _value(entry: Mapping[str, Any]) -> bytes:
    return b64decode(entry["Value"] or b"", validate=True)
