"""The keys of a mirror: which ones are copied, and their names in the destination.

Source: contract C16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase

from datasync.checks import check_key
from datasync.errors import InvalidArgumentError
from datasync.tools.mirror.record import RECORDS

#: Gives the key in the destination for a key of the source, both without their prefixes; None leaves the key out.
MapKey = Callable[[str], "str | None"]


class KeyMap:
    """Maps keys of the source, relative to its prefix, to keys of the destination, relative to its own.

    Prefixes are exchanged by position: what is in front of a key is cut off and replaced, wherever else it occurs.

    Args:
      source_prefix, prefix: The prefixes in the source and in the destination.
      exclude: Patterns of keys without prefix, with ``*``, ``?`` and ``[…]``; they apply at both ends.
      map_key: Renames what is not excluded.

    Raises:
      InvalidArgumentError: *exclude* has something other than strings, *map_key* is not a function, or a prefix is one
        of the records of mirrors.

    Threads: any.
    """

    def __init__(self, source_prefix: str, prefix: str, exclude: Iterable[str], map_key: MapKey | None) -> None:
        patterns = (exclude,) if isinstance(exclude, str) else tuple(exclude)
        if not all(isinstance(one, str) and one for one in patterns):
            raise InvalidArgumentError("exclude takes patterns of keys, each a string that is not empty")
        if map_key is not None and not callable(map_key):
            raise InvalidArgumentError(f"map_key must be a function, not {type(map_key).__name__}")
        for one in (source_prefix, prefix):
            if one.startswith(RECORDS):
                raise InvalidArgumentError(f"{one!r} is where mirrors have their records: choose another prefix")
        # The records of mirrors are never copied: that of one store says nothing true about another one.
        self._records = _records_below(source_prefix), _records_below(prefix)
        #: The patterns of keys that are left alone.
        self.patterns = patterns
        self._map_key = map_key

    def destination_of(self, key: str) -> str | None:
        """Return the key in the destination for *key* of the source; None if it is left out.

        Raises:
          InvalidArgumentError: *map_key* failed, or gave something that is not a key.
        """
        if self._left_out(self._records[0], key):
            return None
        mapped: str | None = key
        if self._map_key is not None:
            try:
                mapped = self._map_key(key)
            except Exception as error:
                raise InvalidArgumentError(f"{key!r}: map_key failed with {type(error).__name__}") from error
            if mapped is not None:
                check_key(mapped, f"the result of map_key for {key!r}")
        # Nor is anything copied to where the records of the destination are, our own lock among them.
        return None if mapped is None or self._is_record(self._records[1], mapped) else mapped

    def concerns(self, key: str) -> bool:
        """Return True if *key* of the destination is the business of the mirror."""
        return not self._left_out(self._records[1], key)

    def _left_out(self, records: str, key: str) -> bool:
        if self._is_record(records, key):
            return True
        return bool(self.patterns) and any(fnmatchcase(key, pattern) for pattern in self.patterns)

    @staticmethod
    def _is_record(records: str, key: str) -> bool:
        return bool(records) and key.startswith(records)


def _records_below(prefix: str) -> str:
    """Return the beginning of the keys of records, without *prefix*; "" if no record is under it."""
    return RECORDS.removeprefix(prefix) if RECORDS.startswith(prefix) else ""
