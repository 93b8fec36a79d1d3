"""What a subscriber lost without being told: the keys that ``get_removed`` of its next RESYNC lists.

A key counts as offered once it stood in an event, delivered or not. Its end needs telling, unless a CHANGE that was
applied told it. The end of a key that came and went while a RESYNC was due needs none.

Source: contract C7; D32, D40 of cn-infra.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable

from datasync.events import Op
from datasync.syncbase.change import ChangeResp, StoredKeyVal


class Losses:
    """The losses of one subscription between two RESYNCs. Threads: the registry's lock.

    Args:
      started: False as long as the subscriber was offered nothing at all.
    """

    __slots__ = ("_gone", "_unoffered", "started")

    def __init__(self, *, started: bool) -> None:
        self.started = started
        self._gone: dict[str, StoredKeyVal] = {}
        self._unoffered: set[str] = set()  # came while a RESYNC was due

    def __len__(self) -> int:
        return len(self._gone) + len(self._unoffered)

    def not_applied(self, changes: Iterable[ChangeResp]) -> None:
        """*changes* stood in an event that was refused, given up, or never got out."""
        for change in changes:
            if change.op is Op.DELETE:
                self._gone[change.key] = _previous(change)

    def not_offered(self, changes: Iterable[ChangeResp]) -> None:
        """*changes* became part of a RESYNC that was due already."""
        if not self.started:
            return
        for change in changes:
            if change.op is Op.DELETE:
                self._lose(_previous(change))
            elif change.previous is None and change.key not in self._gone:
                self._unoffered.add(change.key)

    def replaced(self, gone: Iterable[StoredKeyVal], created: Iterable[str]) -> None:
        """A new full state took *gone* away and brought *created*."""
        if self.started:
            for kv in gone:
                self._lose(kv)
            self._unoffered.update(key for key in created if key not in self._gone)

    def add(self, later: Losses) -> None:
        """Take in what *later*, begun for a RESYNC that did not get out after all, has noted."""
        self.replaced(later._gone.values(), later._unoffered)

    def give_back(self, removed: dict[str, StoredKeyVal]) -> None:
        """*removed* was listed in a RESYNC that was not applied."""
        self._gone = removed | self._gone

    def listed(self, state: Container[str], wanted: Callable[[str], bool]) -> dict[str, StoredKeyVal]:
        """What to tell: gone, not back in *state*, and under a prefix that is still *wanted*."""
        return {key: kv for key, kv in self._gone.items() if key not in state and wanted(key)}

    def _lose(self, kv: StoredKeyVal) -> None:
        if kv.key in self._unoffered:
            self._unoffered.discard(kv.key)
        else:
            self._gone[kv.key] = kv


def _previous(change: ChangeResp) -> StoredKeyVal:
    assert change.previous is not None  # a delete of nothing is never delivered
    return StoredKeyVal(change.key, *change.previous, change.serializer)
