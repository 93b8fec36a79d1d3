"""Which prefixes a key has: plain string prefixes, as many as you like.

The cost of a look-up does not depend on how many prefixes there are, only on how many different lengths they have.
Source: contract C5.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Generic, TypeVar

ValueT = TypeVar("ValueT")


class PrefixTable(Generic[ValueT]):
    """Prefix to a value. Threads: the owner's lock."""

    __slots__ = ("_ascending", "_lengths", "_values")

    def __init__(self) -> None:
        self._values: dict[str, ValueT] = {}
        self._lengths: dict[int, int] = {}  # length to the number of prefixes that have it
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
        """The value of exactly *prefix*."""
        return self._values.get(prefix)

    def set(self, prefix: str, value: ValueT) -> None:
        """Add *prefix*, or give it another value."""
        if prefix not in self._values:
            self._count(len(prefix), +1)
        self._values[prefix] = value

    def remove(self, prefix: str) -> None:
        """Forget *prefix*; one that is not there is ignored."""
        if prefix in self._values:
            del self._values[prefix]
            self._count(len(prefix), -1)

    def matching(self, key: str) -> list[ValueT]:
        """The values of all prefixes of *key*, shortest first."""
        values = self._values
        found = []
        for length in self._ascending:
            head = key[:length]
            if head in values and len(head) == length:  # a slice may be shorter
                found.append(values[head])
        return found

    def matching_all(self, keys: Sequence[str]) -> list[ValueT] | None:
        """As ``matching``, for all of *keys* at once; None where they may differ."""
        if not keys:
            return []
        return self.matching(keys[0]) if self._alike(keys) else None

    def longest(self, key: str) -> str | None:
        """The longest prefix of *key*."""
        for length in reversed(self._ascending):
            if length <= len(key) and key[:length] in self._values:
                return key[:length]
        return None

    def grouped(self, keys: Collection[str]) -> dict[str, list[str]]:
        """Every prefix, and those of *keys* that have no longer one."""
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
        """A table of its own with the same content."""
        twin: PrefixTable[ValueT] = PrefixTable()
        twin._values = self._values.copy()
        twin._lengths = self._lengths.copy()
        twin._ascending = self._ascending
        return twin

    def _alike(self, keys: Collection[str]) -> bool:
        """True when all *keys* surely have the same prefixes; there is at least one."""
        if len(keys) == 1 or not self._ascending:
            return True
        # What the first and the last in order begin with, all between begin with: two tell for a thousand.
        most = self._ascending[-1]
        return most == 0 or min(keys)[:most] == max(keys)[:most]

    def _count(self, length: int, step: int) -> None:
        count = self._lengths.get(length, 0) + step
        if count:
            self._lengths[length] = count
        else:
            del self._lengths[length]
        self._ascending = tuple(sorted(self._lengths))
