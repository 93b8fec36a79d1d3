"""Reads of a client: one pair, or all pairs under a prefix at one revision."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, overload

from datasync.restsync.client.event_source import EventParser, check_revision, key_and_revision
from datasync.restsync.encoding import SERIALIZERS, value_of_item
from datasync.restsync.keys import count_of_keys
from datasync.syncbase.change import KeyValBytes


class RestKeyVal(KeyValBytes):
    """A key with its value on the server; ``get_value(message)`` decodes the value, and ``data`` has its bytes."""

    __slots__ = ("content_type", "etag", "not_accepted")

    def __init__(self, key: str, data: bytes, revision: int, content_type: str, etag: str = "") -> None:
        # An unknown content type has no serializer: decoding it as JSON raises the right error.
        super().__init__(key, data, revision, SERIALIZERS.get(content_type))
        self.content_type = content_type
        #: Entity tag for ``put(..., if_match=...)``; empty in a listing.
        self.etag = etag
        #: Subscriptions of the server that have not accepted this value (C10); unknown, and empty, in a listing.
        self.not_accepted: tuple[str, ...] = ()


class Listing(Sequence[RestKeyVal]):
    """The pairs under a prefix at one ``revision``, in key order."""

    def __init__(self, revision: int, pairs: Sequence[RestKeyVal]) -> None:
        self.revision = revision
        self._pairs = tuple(pairs)

    @overload
    def __getitem__(self, place: int) -> RestKeyVal: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[RestKeyVal]: ...
    def __getitem__(self, place: Any) -> Any:
        return self._pairs[place]

    def __len__(self) -> int:
        return len(self._pairs)

    def __iter__(self) -> Iterator[RestKeyVal]:
        return iter(self._pairs)

    def __repr__(self) -> str:
        return f"<Listing of {count_of_keys(len(self))} at revision {self.revision}>"


def read_listing(data: bytes, prefix: str) -> Listing | None:
    """Return the snapshot in an event stream; None when its end is missing. Raises for invalid data."""
    pairs: dict[str, RestKeyVal] = {}
    for event in EventParser().feed(data):
        if event.name == "items":
            for item in json.loads(event.data):
                key, revision = key_and_revision(item, prefix)
                content_type = item["content_type"]
                pairs[key] = RestKeyVal(key, value_of_item(item, content_type), revision, content_type)
        elif event.name == "synced":
            return Listing(check_revision(json.loads(event.data)["revision"]), [pairs[key] for key in sorted(pairs)])
    return None
