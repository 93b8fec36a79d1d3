"""A guard against mass deletes: a full state that lacks too much is more often a mistake than a wish.

Source: contract C20.
"""

from __future__ import annotations

from collections.abc import Iterable

from datasync.errors import InvalidArgumentError


class DeleteGuard:
    """Holds the deletes of a RESYNC that has too many. Call with the owner's lock held.

    Args:
      most: The most deletes of one RESYNC: a whole number, or a share of the known keys from 0.0 to 1.0; None for all.
      few: So many deletes go on whatever their share, unless nothing would be left.

    Raises:
      InvalidArgumentError: *most* is negative, or a share above 1.0.
    """

    __slots__ = ("_few", "_most", "held")

    def __init__(self, most: int | float | None, few: int = 0) -> None:
        if most is not None and (isinstance(most, bool) or not isinstance(most, (int, float)) or not most >= 0):
            raise InvalidArgumentError("max_delete is a number of keys, or a share from 0.0 to 1.0")
        if isinstance(most, float) and not most <= 1.0:
            raise InvalidArgumentError("max_delete as a share is at most 1.0; a number of keys is a whole number")
        self._most = most
        self._few = few
        #: The keys whose deletes are held.
        self.held: dict[str, None] = {}

    def admits(self, deletes: int, known: int) -> bool:
        """Return True if *deletes* of *known* keys may go on."""
        if self._most is None:
            return True
        if isinstance(self._most, float):
            return deletes <= self._most * known or (deletes <= self._few and deletes < known)
        return deletes <= self._most

    def hold(self, keys: Iterable[str]) -> None:
        """Hold the deletes of *keys*, which then stay as they are."""
        self.held.update(dict.fromkeys(keys))

    def drop(self, key: str) -> None:
        """Forget a held delete: the key has a new value, or was deleted by a CHANGE."""
        self.held.pop(key, None)

    def release(self) -> list[str]:
        """Return the held keys, and hold them no longer."""
        keys = list(self.held)
        self.held.clear()
        return keys
