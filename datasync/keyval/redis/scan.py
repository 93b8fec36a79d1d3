"""The scan of a prefix: its pages, and the commits while they were read, which make them one revision."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from heapq import merge
from typing import Any

from datasync.errors import StoreConnectionError
from datasync.keyval.driver import Scan
from datasync.keyval.positions import Position, new_token
from datasync.keyval.redis import scripts
from datasync.keyval.redis.client import RedisClient
from datasync.keyval.redis.errors import Elsewhere, meaning
from datasync.keyval.redis.log_entry import read_entries
from datasync.keyval.types import KeyValue
from datasync.runtime.wording import below

#: Most keys, and most bytes of values, in one page.
PAGE_KEYS, PAGE_BYTES = 1000, 4 << 20
#: Entries of the log that are read at once.
ENTRIES = 200
#: Listings that are begun, because the history was trimmed or the data replaced meanwhile.
ATTEMPTS = 5

# Key, value and revision.
Triple = tuple[bytes, bytes, int]


class RedisScan(Scan):
    """The pairs under a prefix, or of one *exact* key. All pages are read before the first pair is given out."""

    def __init__(self, client: RedisClient, prefix: str, *, keys_only: bool, exact: bool = False) -> None:
        self._client = client
        self._what = f"reading {prefix!r}" if exact else f"listing {below(prefix)}"
        self._start = client.keys.prefix(prefix)
        self._span = (b"[" + self._start,) * 2 if exact else client.keys.span(prefix)
        self._exact = exact
        self._keys_only = keys_only
        for _ in range(ATTEMPTS):
            if self._read():
                return
        raise StoreConnectionError(f"{client.name}: {self._what}: the history is trimmed faster than a listing is read")

    #: Where the store was at ``revision``.
    position: Position

    def __iter__(self) -> Iterator[KeyValue]:
        decode = self._client.keys.decode
        changed = self._changed
        added = sorted((key, value, revision) for key, (value, revision) in changed.items() if value is not None)
        pairs = self._pairs()
        if changed:
            pairs = merge((pair for pair in pairs if pair[0] not in changed), added)  # keys are unique
        for key, value, revision in pairs:
            yield KeyValue(decode(key), value, revision)

    def covers(self, key: bytes) -> bool:
        """Return True if *key* is one that is listed."""
        return key == self._start if self._exact else key.startswith(self._start)

    def _pairs(self) -> Iterator[Triple]:
        while self._pages:
            page = self._pages.popleft()
            values = iter(page)
            for key, value, revision in zip(values, values, values, strict=True):
                if value is not None:  # otherwise it only says where the next page began
                    yield key, value, int(revision)

    def _read(self) -> bool:
        """Read all pages, and the log from the first page to the last. Return False if that is not one history."""
        self._pages: deque[list[Any]] = deque()
        self._changed: dict[bytes, tuple[bytes | None, int]] = {}
        low, high = self._span
        first = last = self._page(low, high)
        while True:
            epoch, revision, token, more, page = last
            if epoch != first[0] or revision < first[1]:
                return False
            self._pages.append(page)
            if not more:
                break
            last = self._page(b"(" + page[-3], high)
        self.revision = revision
        self.position = Position(revision, token.decode(), epoch.decode())
        return self._replay(first[1], first[2], revision)

    def _page(self, low: bytes, high: bytes) -> Any:
        one = b"1" if self._keys_only else b"0"
        what = self._what
        reply = self._client.run(scripts.PAGE, new_token(0), low, high, PAGE_KEYS, PAGE_BYTES, one, what=what)
        if not reply[0]:
            bad = f"{what}: the key {self._client.keys.decode(reply[2])!r}"
            error = meaning(reply[1].decode("utf-8", "replace"), bad, self._client.name)
            raise error.error if isinstance(error, Elsewhere) else error
        return reply

    def _replay(self, after: int, token: bytes, upto: int) -> bool:
        """Note what changed after the first page. Return False if the log does not have it."""
        previous = token.decode()
        while after < upto:
            bounds = (f"{after + 1}-0", f"{upto}-0")
            reply = self._client.command("XRANGE", self._client.keys.log, *bounds, "COUNT", ENTRIES, what=self._what)
            entries = read_entries(reply, self._client.name)
            if not entries:
                return False
            for entry in entries:
                if entry.revision != after + 1 or entry.previous != previous:
                    return False
                after, previous = entry.revision, entry.token
                for key, value in entry.ops:
                    if self.covers(key):
                        kept = b"" if self._keys_only and value is not None else value
                        self._changed[key] = kept, entry.revision
        return True
