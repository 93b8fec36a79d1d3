"""The versions of one key, read from the history of a store.

Source: contract section 4, C13.
"""

from __future__ import annotations

from typing import NamedTuple

from datasync.errors import CompactedError
from datasync.events import Op
from datasync.keyval.driver import StoreDriver

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
        first = next((pair for pair in store.scan_page(key, limit=1, revision=oldest) if pair.key == key), None)
    except CompactedError:
        first = None  # forgotten, as all before it
    if first is not None:
        found.insert(0, Version(key, first.value, first.revision))
    return found
