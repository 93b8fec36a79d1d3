"""The differences between a state of the source and the destination's actual keys.

Source: contract C20.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field

from datasync.events import Pair
from datasync.keyval.types import KeyValue


@dataclass(slots=True)
class Differences:
    """The changes to write to a destination, with keys relative to its prefix.

    Attributes:
      missing, changed: Keys of the destination to put.
      extra: Keys that only the destination has.
      known: The number of keys that the destination has.
    """

    missing: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    known: int = 0

    @classmethod
    def between(
        cls, wanted: Mapping[str, Pair[object]], present: Iterable[KeyValue], expiring: Container[str] = ()
    ) -> Differences:
        """Return the differences between *wanted* and the pairs of the destination that are *present*.

        Keys of *wanted* that are *expiring* count as changed: the time that they have left is not compared.
        """
        found = cls()
        there: set[str] = set()
        for pair in present:
            there.add(pair.key)
            source = wanted.get(pair.key)
            if source is None:
                found.extra.append(pair.key)
            elif source.raw != pair.value or pair.key in expiring:
                found.changed.append(pair.key)
        found.known = len(there)
        found.missing = [key for key in wanted if key not in there]
        return found

    def puts(self, wanted: Mapping[str, Pair[object]]) -> list[str]:
        """Return the keys to put, in the order in which the source wrote them last."""
        return sorted((*self.missing, *self.changed), key=lambda key: wanted[key].revision)

    def __len__(self) -> int:
        return len(self.missing) + len(self.changed)
