"""The lookup of a key's prefixes, which are plain strings.

The cost of a lookup does not depend on the number of prefixes, only on the number of their different lengths.
Source: contract C5.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Iterator, Sequence
from operator import itemgetter
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

    def matching_prefixes(self, key: str) -> list[str]:
        """Return all prefixes of *key*, shortest first."""
        heads = [key[:length] for length in self._ascending if length <= len(key)]
        return [head for head in heads if head in self._values]

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

    def grouped(self, keys: Sequence[str]) -> dict[str, list[str]]:
        """Return every prefix with those of *keys*, which are sorted, that have no longer prefix.

        The keys of a prefix stand together: a bisection finds them without a look at the other keys.
        """
        groups: dict[str, list[str]] = {prefix: [] for prefix in self._values}
        enclosing: list[tuple[str, int]] = []  # the prefixes of the key at *at*, and where their keys end; longest last
        at = 0
        for prefix in (*sorted(self._values), None):
            start = len(keys) if prefix is None else bisect_left(keys, prefix, at)
            while enclosing and enclosing[-1][1] <= start:
                name, end = enclosing.pop()
                groups[name] += keys[at:end]
                at = end
            if prefix is not None:
                if enclosing:
                    groups[enclosing[-1][0]] += keys[at:start]
                at, size = start, len(prefix)
                enclosing.append((prefix, bisect_right(keys, prefix, at, key=itemgetter(slice(size)))))
        return groups

    def any_of(self, keys: Iterable[str]) -> bool:
        """Return True if one of *keys* has a prefix."""
        return any(self.longest(key) is not None for key in keys)

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
        count = self._lengths[length] = self._lengths.get(length, 0) + step
        if not count:
            del self._lengths[length]
        if count <= 1:  # the length may be new, or is gone
            self._ascending = tuple(sorted(self._lengths))
