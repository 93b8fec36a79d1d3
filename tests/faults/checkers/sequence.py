"""I3: between two RESYNCs exactly the operations of the source, in its order (C3).

A watcher may be in one of several epochs of the truth, because epochs share their beginning. The checker follows the
possible positions from event to event.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

from datasync.events import Op, ResyncReason
from tests.faults.checkers.reading import Reading, Step, Violation, shown, under, wanted
from tests.faults.history import PutChange, PutResync, Seen, Truth

Filters = tuple[tuple[str, ...], ...]

#: After these the watcher may be in a later epoch. A source that was restored, grew beyond the seen revision and was
#: compacted looks like one that was only compacted; and what a queue did not accept is delivered again as failed.
_LEAPS = (ResyncReason.REWOUND, ResyncReason.COMPACTED, ResyncReason.FAILED)


class Place(NamedTuple):
    """The epochs that a watcher may be in, and the revision up to which it was notified."""

    epochs: frozenset[int]
    revision: int

    def shows(self, truth: Truth, state: Mapping[str, bytes], names: tuple[str, ...]) -> bool:
        """Whether what was told to the watcher is *state*, under *names*."""
        right = under(state, names)
        return any(under(truth.epochs[epoch].fold(self.revision), names) == right for epoch in self.epochs)

    def reachable(self, truth: Truth) -> frozenset[int]:
        """The epochs that share the watcher's past: a rewind to a later revision cannot be detected."""
        epochs = truth.epochs
        if len(epochs) == 1:
            return self.epochs
        found = set()
        for epoch in self.epochs:
            found.add(epoch)
            while epoch + 1 < len(epochs) and epochs[epoch + 1].base >= self.revision:
                epoch += 1
                found.add(epoch)
        return frozenset(found)


def check_changes(truth: Truth, reading: Reading) -> Violation | None:
    """I3: between RESYNCs exactly the operations of the truth, in order; at the end nothing is missing (C3).

    Redeliveries are apart from that: each brings a key that is owed, and what was told of it last (C10).
    """
    for key in reading.redelivered:
        if key.debt is None:
            return reading.violation("I3", key.at, f"{key.change.key!r} was accepted, and comes again")
        if key.change.value != key.told.value:
            what = f"brings {key.change.value!r} again, and {key.told.value!r} was told last"
            return reading.violation("I3", key.at, f"{key.change.key!r}: {what}")
    place: Place | None = None
    for step in reading.steps:
        if isinstance(step.entry, (PutChange, PutResync)):
            place, why = follow(truth, reading, place, step)
            if place is None:
                return reading.violation("I3", step.at, why)
    if not reading.log.complete or reading.closed:
        return None
    return _at_the_end(truth, reading, place, reading.steps[-1].scope.filters if reading.steps else ((),))


def follow(truth: Truth, reading: Reading, place: Place | None, step: Step) -> tuple[Place | None, str]:
    """The position after the event of *step*; None and the reason when the event is wrong."""
    entry = step.entry
    if isinstance(entry, PutResync):
        after = _after_resync(truth, place, entry)
        return (after, "") if after.epochs else (None, f"revision {entry.revision} does not follow what came before")
    assert isinstance(entry, PutChange)
    if not entry.changes:
        return None, "an event without changes"
    if any((change.op is Op.DELETE) is not (change.value is None) for change in entry.changes):
        return None, "a delete has a value, or a put has none"
    if entry.redelivery:
        return place, "a redelivery before anything else"
    if place is None and reading.log.sourced:
        return None, "a CHANGE before the first RESYNC"
    if place is None:
        place = _without_resync(truth, entry.changes[0].revision, step.scope.filters)
        if not place.epochs:
            return None, "there was something before it, and no RESYNC brought that"
    return _after_change(truth, place, entry.changes, step.scope.filters)


def _at_the_end(truth: Truth, reading: Reading, place: Place | None, filters: Filters) -> Violation | None:
    if place is None:
        if reading.log.sourced:
            return reading.violation("I3", reading.last, "the first RESYNC never came")
        missing = list(under(truth.state, filters[-1]))
        if missing:  # a registry with any of these keys sent a RESYNC, one without them sent the changes
            return reading.violation("I3", reading.last, f"never delivered: {missing[:3]}")
        return None
    newest = len(truth.epochs) - 1
    if truth.net_effects:
        if place.shows(truth, truth.state, filters[-1]):
            return None
        return reading.violation("I3", reading.last, "what was told is not the state of the source at the end")
    if newest not in place.reachable(truth):
        return reading.violation("I3", reading.last, "the last rewind of the source was never told")
    for commit in truth.epochs[newest].after(place.revision):
        if missed := wanted(commit, filters[-1]):
            return reading.violation("I3", reading.last, f"never delivered: revision {commit.revision}, {missed[:3]}")
    return None


def fitting_epochs(truth: Truth, entry: PutResync) -> Iterator[int]:
    """The epochs whose state at the revision of *entry* equals it."""
    pairs = shown(entry)
    fits = False
    for number, epoch in enumerate(truth.epochs):
        if number == 0 or entry.revision > epoch.base:  # otherwise it is the same as in the previous epoch
            fits = under(epoch.fold(entry.revision), entry.values) == pairs
        if fits:
            yield number


def _without_resync(truth: Truth, revision: int, filters: Filters) -> Place:
    """The position of a watcher whose first event is a CHANGE at *revision*: there were no keys when it registered."""
    empty = [
        number
        for number, epoch in enumerate(truth.epochs)
        if any(not under(epoch.fold(revision - 1), names) for names in filters)
    ]
    return Place(frozenset(empty), revision - 1)


def _after_resync(truth: Truth, before: Place | None, entry: PutResync) -> Place:
    right = set(fitting_epochs(truth, entry))
    if not right:
        right = set(range(len(truth.epochs)))  # checked by I2
    if before is not None and entry.reason in _LEAPS:
        # An earlier revision belongs to a later epoch; in the same one it would be outdated.
        earliest = min(before.epochs) + (entry.revision < before.revision)
        right = {number for number in right if number >= earliest}
    elif before is not None:
        right &= before.reachable(truth)
    return Place(frozenset(right), entry.revision)


def _after_change(truth: Truth, place: Place, changes: Sequence[Seen], filters: Filters) -> tuple[Place | None, str]:
    groups = [(revision, list(group)) for revision, group in groupby(changes, key=lambda change: change.revision)]
    if truth.net_effects:
        return _after_net_effects(truth, place, groups, filters)
    fitting, why = [], ""
    for number in place.reachable(truth):
        mismatch = _mismatch(truth, number, place.revision, groups, filters)
        if mismatch:
            why = mismatch
        else:
            fitting.append(number)
    if not fitting:
        return None, why
    return Place(frozenset(fitting), groups[-1][0]), ""


def _after_net_effects(
    truth: Truth, place: Place, groups: Sequence[tuple[int, list[Seen]]], filters: Filters
) -> tuple[Place | None, str]:
    """The position after changes that lead from the state of *place* to that of their revision, in some epoch.

    Without a history a store that was wiped cannot be told from one whose keys were deleted.
    """
    for target, group in groups:
        told = {change.key: change.value if change.op is Op.PUT else None for change in group}
        fitting = [
            number
            for number in range(min(place.epochs), len(truth.epochs))
            if target > truth.epochs[number].base or number in place.epochs
            if any(
                _leads(truth.epochs[before].fold(place.revision), told, truth.epochs[number].fold(target), names)
                for before in place.epochs
                for names in filters
            )
        ]
        if not fitting:
            return None, f"revision {target}: told {told}, which does not lead to the state of then"
        place = Place(frozenset(fitting), target)
    return place, ""


def _leads(
    before: Mapping[str, bytes], told: Mapping[str, bytes | None], after: Mapping[str, bytes], names: tuple[str, ...]
) -> bool:
    """Whether *told* is what leads from *before* to *after*: no more deletes than that, and every put is of now."""
    state = dict(under(before, names))
    for key, value in told.items():
        if value is None:
            if state.pop(key, None) is None:
                return False
        else:
            state[key] = value
    return state == under(after, names)


def _mismatch(
    truth: Truth, number: int, revision: int, groups: Sequence[tuple[int, list[Seen]]], filters: Filters
) -> str:
    """The reason why the commits of epoch *number* after *revision* differ from *groups*; empty if they do not."""
    epoch = truth.epochs[number]
    commits = epoch.commits
    position, count = epoch.position(revision), len(commits)
    for target, group in groups:
        while position < count and commits[position].revision < target:
            if all(wanted(commits[position], names) for names in filters):
                return f"revision {commits[position].revision} was left out before {target}"
            position += 1
        if position == count or commits[position].revision != target:
            return f"the source has no revision {target} after {revision}"
        told = [(change.key, change.value if change.op is Op.PUT else None) for change in group]
        if all(told != wanted(commits[position], names) for names in filters):
            return f"revision {target}: told {told}, true {wanted(commits[position], filters[0])}"
        position += 1
    return ""
