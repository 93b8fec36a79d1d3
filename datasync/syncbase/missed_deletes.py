"""The deletes that a subscriber missed: the keys that ``get_removed`` of its next RESYNC lists.

A key counts as offered once an event contained it, delivered or not. Its delete must be reported unless a CHANGE that
was applied reported it. The delete of a key that was created and deleted while a RESYNC was due need not be.

Source: contract C7.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping

from datasync.events import Op
from datasync.syncbase.change import ChangeResp, StateKeyVal

# Nearly every subscription misses nothing: all share these, and copy them before the first change.
_NOTHING_GONE: dict[str, StateKeyVal] = {}
_NOTHING_NEW: set[str] = set()


class MissedDeletes:
    """The missed deletes of one subscription between two RESYNCs. Call with the registry's lock held.

    Args:
      started: False until the subscriber was offered anything at all.
    """

    __slots__ = ("_gone", "_orphans", "_shared", "_unoffered", "started")

    def __init__(self, *, started: bool) -> None:
        self.started = started
        self._gone = _NOTHING_GONE
        self._unoffered = _NOTHING_NEW  # created while a RESYNC was due
        self._orphans: dict[str, StateKeyVal] = {}  # of prefixes that were unregistered; they may come back
        self._shared = True  # with other subscriptions: copied before the first change

    def not_applied(self, changes: Iterable[ChangeResp]) -> None:
        """Note *changes* of an event that was rejected, abandoned, or never put."""
        for change in changes:
            if change.op is Op.DELETE and change.before is not None:  # a redelivery of a known one may lack it
                self._own()[0][change.key] = _previous(change)

    def __bool__(self) -> bool:
        return bool(self._gone)

    def applied(self, change: ChangeResp) -> None:
        """Note that *change* was applied: a delete is no longer missed."""
        if change.op is Op.DELETE:
            self._own()[0].pop(change.key, None)

    def offered(self, kv: StateKeyVal) -> None:
        """Note that the subscriber may have *kv*, which is gone."""
        self._own()[0][kv.key] = kv

    def orphaned(self, kv: StateKeyVal) -> None:
        """Note that the subscriber may have *kv*, which is under no prefix any more."""
        self._orphans[kv.key] = kv

    def not_offered(self, changes: Iterable[ChangeResp]) -> None:
        """Note *changes* that became part of a RESYNC that was already due."""
        if not self.started:
            return
        gone, unoffered = self._own()
        for change in changes:
            if change.op is Op.DELETE:
                if change.key in unoffered:
                    unoffered.discard(change.key)
                else:
                    gone[change.key] = _previous(change)
            elif change.before is None and change.key not in gone:
                unoffered.add(change.key)

    def replaced(self, gone: dict[str, StateKeyVal], created: set[str]) -> None:
        """Note that a new full state removed *gone* and brought *created*. Keeps both, which many may share."""
        if not self.started:
            return
        if not self._gone and not self._unoffered:
            self._gone, self._unoffered, self._shared = gone, created, True
            return
        mine, unoffered = self._own()
        for key, pair in gone.items():
            if key in unoffered:
                unoffered.discard(key)
            else:
                mine[key] = pair
        unoffered.update(key for key in created if key not in mine)

    def add(self, later: MissedDeletes) -> None:
        """Add the notes of *later*, which was begun for a RESYNC that could not be put."""
        self.replaced(later._gone, later._unoffered)
        self._orphans.update(later._orphans)

    def give_back(self, removed: Mapping[str, StateKeyVal]) -> None:
        """Take back *removed*, which a RESYNC listed that was not applied."""
        if removed:
            self._own()
            self._gone = {**removed, **self._gone}

    def listed(self, state: Container[str], wanted: Callable[[str], bool]) -> dict[str, StateKeyVal]:
        """Return the pairs to report: gone, not back in *state*, and under a prefix that is still *wanted*."""
        notes = {**self._orphans, **self._gone} if self._orphans else self._gone
        return {key: kv for key, kv in notes.items() if key not in state and wanted(key)}

    def following(self, wanted: Callable[[str], bool]) -> MissedDeletes:
        """Return the notes to begin with after a RESYNC: the keys whose prefix has not come back."""
        notes = MissedDeletes(started=True)
        notes._orphans = {key: kv for key, kv in self._orphans.items() if not wanted(key)}
        return notes

    def _own(self) -> tuple[dict[str, StateKeyVal], set[str]]:
        """Return the notes to change them."""
        if self._shared:
            self._gone, self._unoffered, self._shared = self._gone.copy(), self._unoffered.copy(), False
        return self._gone, self._unoffered


def _previous(change: ChangeResp) -> StateKeyVal:
    assert change.before is not None  # a delete of nothing is never delivered
    return StateKeyVal(change.key, *change.before, change.serializer, change.codec)
