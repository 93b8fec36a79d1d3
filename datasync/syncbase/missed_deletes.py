"""The deletes that a subscriber missed: the keys that ``get_removed`` of its next RESYNC lists.

A key counts as offered once an event contained it, delivered or not. Its delete must be reported unless a CHANGE that
was applied reported it. The delete of a key that was created and deleted while a RESYNC was due need not be.

Source: contract C7.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable

from datasync.events import Op
from datasync.syncbase.change import ChangeResp, StateKeyVal


class MissedDeletes:
    """The missed deletes of one subscription between two RESYNCs. Call with the registry's lock held.

    Args:
      started: False until the subscriber was offered anything at all.
    """

    __slots__ = ("_gone", "_unoffered", "started")

    def __init__(self, *, started: bool) -> None:
        self.started = started
        self._gone: dict[str, StateKeyVal] = {}
        self._unoffered: set[str] = set()  # created while a RESYNC was due

    def not_applied(self, changes: Iterable[ChangeResp]) -> None:
        """Note *changes* of an event that was rejected, abandoned, or never put."""
        for change in changes:
            if change.op is Op.DELETE:
                self._gone[change.key] = _previous(change)

    def not_offered(self, changes: Iterable[ChangeResp]) -> None:
        """Note *changes* that became part of a RESYNC that was already due."""
        if not self.started:
            return
        for change in changes:
            if change.op is Op.DELETE:
                self._lose(_previous(change))
            elif change.previous is None and change.key not in self._gone:
                self._unoffered.add(change.key)

    def replaced(self, gone: Iterable[StateKeyVal], created: Iterable[str]) -> None:
        """Note that a new full state removed *gone* and brought *created*."""
        if self.started:
            for kv in gone:
                self._lose(kv)
            self._unoffered.update(key for key in created if key not in self._gone)

    def add(self, later: MissedDeletes) -> None:
        """Add the notes of *later*, which was begun for a RESYNC that could not be put."""
        self.replaced(later._gone.values(), later._unoffered)

    def give_back(self, removed: dict[str, StateKeyVal]) -> None:
        """Take back *removed*, which a RESYNC listed that was not applied."""
        self._gone = removed | self._gone

    def listed(self, state: Container[str], wanted: Callable[[str], bool]) -> dict[str, StateKeyVal]:
        """Return the pairs to report: gone, not back in *state*, and under a prefix that is still *wanted*."""
        return {key: kv for key, kv in self._gone.items() if key not in state and wanted(key)}

    def _lose(self, kv: StateKeyVal) -> None:
        if kv.key in self._unoffered:
            self._unoffered.discard(kv.key)
        else:
            self._gone[kv.key] = kv


def _previous(change: ChangeResp) -> StateKeyVal:
    assert change.previous is not None  # a delete of nothing is never delivered
    return StateKeyVal(change.key, *change.previous, change.serializer)
