"""The pairs under one prefix of a RESYNC.

Source: cn-infra ``datasync/syncbase/kv_iterator.go``; contract section 2.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from datasync.events import KeyVal


class KVIterator:
    """Hands out *items* once, with ``get_next`` or as a Python iterator. What *items* raises is raised to the reader.

    Threads: one at a time.
    """

    __slots__ = ("_items",)

    def __init__(self, items: Iterable[KeyVal]) -> None:
        self._items = iter(items)

    def get_next(self) -> tuple[KeyVal | None, bool]:
        """The next pair and False; ``(None, True)`` past the last one."""
        for kv in self._items:
            return kv, False
        return None, True

    def __iter__(self) -> Iterator[KeyVal]:
        return self

    def __next__(self) -> KeyVal:
        return next(self._items)
