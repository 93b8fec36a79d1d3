"""The versions of one key, and the pairs of an earlier revision, read from the history of a store.

Source: contract section 4, C13.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from datasync.errors import CompactedError
from datasync.events import Op
from datasync.keyval.driver import StoreDriver, key_order
from datasync.keyval.embedded import forgotten
from datasync.keyval.types import KeyValue

#: Attempts to read a history that is compacted while it is read.
ATTEMPTS = 5


class Version(NamedTuple):
    """A value that a key had from *revision* on; None from the revision at which it was deleted."""

    key: str
    value: bytes | None
    revision: int

    @property
    def raw(self) -> bytes | None:
        """As ``value``."""
        return self.value

    @property
    def op(self) -> Op:
        """``Op.PUT``, or ``Op.DELETE`` if the key was deleted."""
        return Op.DELETE if self.value is None else Op.PUT

    def __repr__(self) -> str:
        size = "deleted" if self.value is None else f"<{len(self.value)} bytes>"
        return f"Version(key={self.key!r}, {size}, revision={self.revision})"


def versions(store: StoreDriver, key: str) -> list[Version]:
    """Return the versions of *key* that *store* still has, the oldest first."""
    oldest = 1
    for _ in range(ATTEMPTS - 1):
        try:
            return _versions_after(store, key, oldest)
        except CompactedError as error:
            if error.compact_revision <= oldest:
                raise
            oldest = error.compact_revision
    return _versions_after(store, key, oldest)


def _versions_after(store: StoreDriver, key: str, oldest: int) -> list[Version]:
    page = store.scan_page(key, limit=1)
    now = next((pair for pair in page if pair.key == key), None)
    # A key that is there has no change after that of its value.
    upto = page.revision if now is None else now.revision
    changes = store.changes(key, oldest, upto, last=now is not None)
    found = [Version(key, value, revision) for revision, value in changes]
    try:
        first = store.read_at(key, oldest)
    except CompactedError:
        first = None  # forgotten, as all before it
    if first is not None:
        found.insert(0, Version(key, first.value, first.revision))
    return found


def pairs_at(
    revision: int,
    now: Iterable[KeyValue],
    changes: Iterable[tuple[str, bytes | None, int]],
    *,
    complete: bool,
    name: str,
    limit: int = 0,
) -> list[KeyValue]:
    """Return the first *limit* pairs (0: all) at *revision*, in key order.

    Args:
      now: The pairs of the present.
      changes: Key, value and revision of each change of their keys that the history has, oldest first.
      complete: True if the history begins with the first commit of the store.

    Raises:
      CompactedError: One of these was changed after *revision*, and the history does not have what it was before.
    """
    before: dict[str, KeyValue | None] = {}
    changed: set[str] = set()
    for key, value, at in changes:
        if at > revision:
            changed.add(key)
        else:
            before[key] = None if value is None else KeyValue(key, value, at)
    unchanged = {pair.key: pair for pair in now if pair.key not in changed}
    found: list[KeyValue] = []
    for key in sorted(unchanged.keys() | changed, key=key_order):
        if limit and len(found) == limit:
            break
        if key in changed and key not in before and not complete:
            raise forgotten(name, key, revision)
        pair = before.get(key) if key in changed else unchanged[key]
        if pair is not None:
            found.append(pair)
    return found
