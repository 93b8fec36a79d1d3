"""What the client gives back for a key."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, overload

from datasync.restsync.encoding import SERIALIZERS
from datasync.syncbase.change import KeyValBytes


class RestKeyVal(KeyValBytes):
    """A key with its value, as it stands on the server: ``get_value(message)`` reads it, ``data`` is the bytes."""

    __slots__ = ("content_type", "etag")

    def __init__(self, key: str, data: bytes, revision: int, content_type: str, etag: str = "") -> None:
        # What has no serializer of ours is left as bytes; reading it as JSON will say that it is none.
        super().__init__(key, data, revision, SERIALIZERS.get(content_type))
        self.content_type = content_type
        #: For ``put(..., if_match=…)``; empty in listings.
        self.etag = etag


class Listing(Sequence[RestKeyVal]):
    """The pairs under a prefix, in the order of their keys, all of one ``revision``."""

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
        return f"<Listing of {len(self)} pair(s) at revision {self.revision}>"
