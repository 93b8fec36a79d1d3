"""The pairs under one prefix of a RESYNC.

Source: cn-infra ``datasync/syncbase/kv_iterator.go``; contract C7.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from datasync.events import KeyVal


class KVIterator:
    """Returns *items* once, through ``get_next`` or as a Python iterator. An exception of *items* reaches the reader.

    Threads: one at a time.
    """

    __slots__ = ("_items",)

    def __init__(self, items: Iterable[KeyVal]) -> None:
        self._items = iter(items)

    def get_next(self) -> tuple[KeyVal | None, bool]:
        """Return the next pair and False; ``(None, True)`` after the last one."""
        for kv in self._items:
            return kv, False
        return None, True

    def __iter__(self) -> Iterator[KeyVal]:
        return self

    def __next__(self) -> KeyVal:
        return next(self._items)
