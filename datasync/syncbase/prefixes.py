"""The lookup of a key's prefixes, which are plain strings.

The cost of a lookup does not depend on the number of prefixes, only on the number of their different lengths.
Source: contract C5.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Generic, TypeVar

ValueT = TypeVar("ValueT")


class PrefixTable(Generic[ValueT]):
    """A mapping of prefixes to values. Threads: the owner's lock."""

    __slots__ = ("_ascending", "_lengths", "_values")

    def __init__(self) -> None:
        self._values: dict[str, ValueT] = {}
        self._lengths: dict[int, int] = {}  # length to the number of prefixes with that length
        self._ascending: tuple[int, ...] = ()

    @staticmethod
    def of(prefixes: Iterable[str]) -> PrefixTable[None]:
        """Return a table of *prefixes* without values."""
        table: PrefixTable[None] = PrefixTable()
        for prefix in prefixes:
            table.set(prefix, None)
        return table

    def __contains__(self, prefix: str) -> bool:
        return prefix in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def get(self, prefix: str) -> ValueT | None:
        """Return the value of exactly *prefix*."""
        return self._values.get(prefix)

    def set(self, prefix: str, value: ValueT) -> None:
        """Set the value of *prefix*."""
        if prefix not in self._values:
            self._count(len(prefix), +1)
        self._values[prefix] = value

    def remove(self, prefix: str) -> None:
        """Remove *prefix*; without effect for an unknown one."""
        if prefix in self._values:
            del self._values[prefix]
            self._count(len(prefix), -1)

    def matching(self, key: str) -> list[ValueT]:
        """Return the values of all prefixes of *key*, shortest first."""
        values = self._values
        found = []
        for length in self._ascending:
            head = key[:length]
            if head in values and len(head) == length:  # a slice may be shorter
                found.append(values[head])
        return found

    def matching_all(self, keys: Sequence[str]) -> list[ValueT] | None:
        """Return ``matching`` for all *keys* at once; None if the keys may have different prefixes."""
        if not keys:
            return []
        return self.matching(keys[0]) if self._alike(keys) else None

    def longest(self, key: str) -> str | None:
        """Return the longest prefix of *key*, None when there is none."""
        for length in reversed(self._ascending):
            if length <= len(key) and key[:length] in self._values:
                return key[:length]
        return None

    def grouped(self, keys: Collection[str]) -> dict[str, list[str]]:
        """Return every prefix with those of *keys* that have no longer prefix."""
        groups: dict[str, list[str]] = {prefix: [] for prefix in self._values}
        if keys and self._alike(keys):
            longest = self.longest(next(iter(keys)))
            if longest is not None:
                groups[longest] = list(keys)
            return groups
        for key in keys:
            longest = self.longest(key)
            if longest is not None:
                groups[longest].append(key)
        return groups

    def copy(self) -> PrefixTable[ValueT]:
        """Return an independent table with the same content."""
        twin: PrefixTable[ValueT] = PrefixTable()
        twin._values = self._values.copy()
        twin._lengths = self._lengths.copy()
        twin._ascending = self._ascending
        return twin

    def _alike(self, keys: Collection[str]) -> bool:
        """Return True if all *keys*, of which there is at least one, certainly have the same prefixes."""
        if len(keys) == 1 or not self._ascending:
            return True
        # A start that the first and the last key in order have in common is common to all keys between them.
        most = self._ascending[-1]
        return most == 0 or min(keys)[:most] == max(keys)[:most]

    def _count(self, length: int, step: int) -> None:
        self._lengths[length] = self._lengths.get(length, 0) + step
        self._ascending = tuple(sorted(length for length, count in self._lengths.items() if count))
