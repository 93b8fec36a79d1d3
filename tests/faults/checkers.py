"""The invariants, checked offline: the recorded truth against one watcher's log.

Each checker returns the first violation that it finds, with its context, or None. They share one reading of the log
(:class:`_Reading`): which prefixes may apply to each event, given that calls take time, and which epochs of the truth
the watcher may be in, given that two epochs share their beginning.

Source: contract section 6 (I1-I7, I9, I11), clauses C2-C9 and C13.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from datasync.events import Op, ResyncReason
from tests.faults.history import (
    Answered,
    Answering,
    Asked,
    Log,
    Op1,
    PutChange,
    PutResync,
    Seen,
    Truth,
    Watched,
)

#: An event is given up a little before or after its time; nobody is blamed for what happens then.
ABANDON_TOLERANCE = 0.5


@dataclass(frozen=True)
class Violation:
    """*where* is the number of the entry in the log; *context* the entries around it."""

    invariant: str
    watcher: str
    what: str
    where: int
    context: str

    def __str__(self) -> str:
        return f"{self.invariant} violated at {self.watcher}, entry {self.where}: {self.what}\n{self.context}"


Checker = Callable[[Truth, Log], Violation | None]


def longest(key: str, prefixes: Iterable[str]) -> str | None:
    """The longest of *prefixes* that *key* has; written again here, because the library's own is under test."""
    return max((prefix for prefix in prefixes if key.startswith(prefix)), key=len, default=None)


def check_prefixes(truth: Truth, log: Log) -> Violation | None:
    """I1: nothing but what was asked for; each key under its longest prefix; every prefix has its entry (C5, C11)."""
    owed: dict[str, int] = {}  # prefixes that a RESYNC still had to bring, since which entry
    for reading in _read(log):
        entry = reading.entry
        if isinstance(entry, Asked) and entry.what in ("unregister", "close"):
            owed = {} if entry.what == "close" else {p: at for p, at in owed.items() if p != entry.prefix}
        if isinstance(entry, PutResync):
            named = set(entry.values)
            if strangers := named - reading.may:
                return _violation("I1", log, reading.at, f"the RESYNC names prefixes nobody registered: {strangers}")
            for prefix, pairs in entry.values.items():
                for key in pairs:
                    if longest(key, named) != prefix:
                        return _violation("I1", log, reading.at, f"{key!r} stands under {prefix!r}")
            for gone in entry.removed:
                if longest(gone.key, named) is None:
                    return _violation("I1", log, reading.at, f"{gone.key!r} was removed, and nobody asked for it")
            # A prefix that was registered while this RESYNC was being put is brought by the next one.
            owed = {prefix: owed.get(prefix, reading.at) for prefix in reading.must - named}
        elif isinstance(entry, PutChange):
            for change in entry.changes:
                if longest(change.key, reading.delivered_may) is None:
                    return _violation("I1", log, reading.at, f"{change.key!r} has no prefix that was asked for")
    if owed and log.complete:
        return _violation("I1", log, max(owed.values()), f"no RESYNC ever brought the prefixes {set(owed)}")
    return None


def check_snapshots(truth: Truth, log: Log) -> Violation | None:
    """I2: each RESYNC is the truth's state at its revision, in some epoch (C2)."""
    for at, entry in enumerate(log.entries):
        if not isinstance(entry, PutResync):
            continue
        shown = _shown(entry)
        states = [_under(epoch.fold(entry.revision), entry.values) for epoch in truth.epochs]
        if shown not in states:
            return _violation("I2", log, at, f"revision {entry.revision}: {_difference(states[-1], shown)}")
    return None


def check_changes(truth: Truth, log: Log) -> Violation | None:
    """I3: between RESYNCs exactly the truth's operations, in its order; in the end nothing is missing (C3)."""
    place: _Place | None = None
    delivered: frozenset[str] = frozenset()
    for reading in _read(log):
        entry = reading.entry
        delivered = reading.delivered_must
        if isinstance(entry, PutResync):
            place = _after_resync(truth, place, entry)
            if not place.epochs:
                return _violation("I3", log, reading.at, f"revision {entry.revision} does not follow what came before")
        elif isinstance(entry, PutChange):
            if not entry.changes:
                return _violation("I3", log, reading.at, "an event without changes")
            if place is None and log.sourced:
                return _violation("I3", log, reading.at, "a CHANGE before the first RESYNC")
            if place is None:
                place = _Place(frozenset(range(len(truth.epochs))), entry.changes[0].revision - 1)
            following, why = _after_change(truth, place, entry.changes, reading.filters)
            if following is None:
                return _violation("I3", log, reading.at, why)
            place = following
    closed = any(isinstance(entry, Asked) and entry.what == "close" for entry in log.entries)
    if log.complete and not closed:
        if place is None and not log.sourced:
            return None
        if place is None:
            return _violation("I3", log, len(log.entries) - 1, "the first RESYNC never came")
        if len(truth.epochs) - 1 not in place.reachable(truth):
            return _violation("I3", log, len(log.entries) - 1, "the last rewind of the source was never told")
        missing = _wanted(truth.epochs[-1].after(place.revision), delivered)
        if missing:
            return _violation("I3", log, len(log.entries) - 1, f"never delivered: {missing[:3]}")
    return None


def check_revisions(truth: Truth, log: Log) -> Violation | None:
    """I4: revisions grow, unless a RESYNC says that the source went back; and it says so only when it did (C3, C6)."""
    last = -1
    for at, entry in enumerate(log.entries):
        if isinstance(entry, PutResync):
            if entry.reason is ResyncReason.REWOUND and len(truth.epochs) == 1:
                return _violation("I4", log, at, "the source is said to have gone back, and never did")
            if entry.revision < last and entry.reason is not ResyncReason.REWOUND:
                return _violation("I4", log, at, f"a RESYNC goes back from {last} to {entry.revision}")
            last = entry.revision
        elif isinstance(entry, PutChange):
            revision = last
            for change in entry.changes:
                if change.revision <= last or change.revision < revision:
                    return _violation("I4", log, at, f"{change.key!r}: revision {change.revision} after {revision}")
                revision = change.revision
            last = revision
    return None


def check_transactions(truth: Truth, log: Log) -> Violation | None:
    """I5: a transaction is never split over two events (C4)."""
    seen: set[int] = set()
    for at, entry in enumerate(log.entries):
        if isinstance(entry, PutResync):
            seen = {revision for revision in seen if revision > entry.revision}
            if entry.reason is ResyncReason.REWOUND:
                seen = set()
        elif isinstance(entry, PutChange):
            revisions = {change.revision for change in entry.changes}
            if split := revisions & seen:
                return _violation("I5", log, at, f"the transaction at {split} came in an earlier event already")
            if len(revisions) > 1 and not log.sourced:
                return _violation("I5", log, at, "the transactions of several callers are in one event")
            keys = [change.key for change in entry.changes]
            if len(set(keys)) != len(keys):
                return _violation("I5", log, at, "a key stands twice in one event")
            seen |= revisions
    return None


def check_previous(truth: Truth, log: Log) -> Violation | None:
    """I6: each previous value is the truth's just before (C6)."""
    for at, entry in enumerate(log.entries):
        if not isinstance(entry, PutChange):
            continue
        for change in entry.changes:
            right = set()
            for epoch in truth.epochs:
                commit = epoch.at(change.revision)
                if commit is not None and Op1(change.key, change.value) in commit.ops:
                    right.add(epoch.fold(change.revision - 1).get(change.key))
            if right and change.previous not in right:
                return _violation("I6", log, at, f"{change.key!r} had {right}, not {change.previous!r}")
            if change.op is Op.DELETE and change.previous is None:
                return _violation("I6", log, at, f"{change.key!r} was deleted and had not been there")
    return None


def check_removed(truth: Truth, log: Log) -> Violation | None:
    """I7: a RESYNC lists what was offered before and is gone, and nothing that is there (C7).

    Only a delete that was accepted counts as told: whoever refuses one, or says nothing, hears of it again.
    """
    verdicts = _verdicts(log)
    offered: dict[str, int] = {}  # key to the revision at which it was offered last
    for reading in _read(log):
        entry = reading.entry
        if isinstance(entry, Asked) and entry.what == "unregister":
            offered = {key: at for key, at in offered.items() if longest(key, reading.delivered_must) is not None}
        elif isinstance(entry, PutChange):
            for change in entry.changes:
                if change.op is Op.PUT:
                    offered[change.key] = change.revision
                elif verdicts.get(entry.number):
                    offered.pop(change.key, None)
        elif isinstance(entry, PutResync):
            there = _shown(entry)
            listed = {gone.key: gone for gone in entry.removed}
            if still := listed.keys() & there.keys():
                return _violation("I7", log, reading.at, f"removed and yet there: {still}")
            missed = {key for key in offered if key not in there and longest(key, entry.values) is not None}
            if untold := missed - listed.keys():
                return _violation("I7", log, reading.at, f"gone, and not told: {untold}")
            for key, gone in listed.items():
                if not any(Op1(key, gone.value) in commit.ops for epoch in truth.epochs for commit in epoch.commits):
                    return _violation("I7", log, reading.at, f"{key!r} never had the value it was removed with")
            if not verdicts.get(entry.number):
                offered = {key: at for key, at in offered.items() if key not in there}
                offered.update(dict.fromkeys(there, entry.revision))
            else:
                offered = dict.fromkeys(there, entry.revision)
    return None


def check_answers(truth: Truth, log: Log) -> Violation | None:
    """I9: every event settles exactly once: by its consumer, by close, or by being given up (C9)."""
    put_at: dict[int, float] = {}
    first: dict[int, int] = {}
    closing: float | None = None
    asked: set[int] = set()
    for at, entry in enumerate(log.entries):
        if isinstance(entry, (PutChange, PutResync)):
            if closing is not None and any(
                isinstance(other, Asked) and other.what == "close" and other.over for other in log.entries[:at]
            ):
                return _violation("I9", log, at, "an event was put after close() had returned")
            put_at[entry.number] = entry.time
        elif isinstance(entry, Asked) and entry.what == "close" and closing is None:
            closing = entry.time
        elif isinstance(entry, Answering):
            asked.add(entry.number)
        elif isinstance(entry, Answered):
            if entry.number not in put_at:
                return _violation("I9", log, at, f"event {entry.number} was answered before it was put")
            if entry.first:
                if entry.number in first:
                    return _violation("I9", log, at, f"event {entry.number} settled twice")
                first[entry.number] = at
            elif entry.number not in first and closing is None:
                racing = _answers_under_way(log, at, entry.number)
                age = entry.time - put_at[entry.number]
                if not racing and age < log.abandon * ABANDON_TOLERANCE:
                    return _violation("I9", log, at, f"event {entry.number} took no answer {age:.3f} s after its put")
    if log.complete:
        for number, time in put_at.items():
            if number not in asked and closing is None and log.end - time < log.abandon * ABANDON_TOLERANCE:
                return _violation("I9", log, len(log.entries) - 1, f"event {number} was never settled")
    return None


def check_in_flight(truth: Truth, log: Log) -> Violation | None:
    """I11: never more in flight than allowed; a RESYNC goes alone, and nothing before it is settled (C3, C4)."""
    limit = 1
    flying: dict[int, PutChange | PutResync] = {}
    for at, entry in enumerate(log.entries):
        if isinstance(entry, Watched):
            limit = entry.in_flight
        elif isinstance(entry, Answering):
            flying.pop(entry.number, None)
        elif isinstance(entry, (PutChange, PutResync)):
            young = {n: put for n, put in flying.items() if entry.time - put.time < log.abandon * ABANDON_TOLERANCE}
            barrier = [n for n, put in young.items() if isinstance(put, PutResync)]
            if isinstance(entry, PutResync) and young:
                return _violation("I11", log, at, f"a RESYNC was put before {sorted(young)} had settled")
            if barrier:
                return _violation("I11", log, at, f"a CHANGE was put before the RESYNC {barrier} had settled")
            if len(young) >= limit:
                return _violation("I11", log, at, f"{len(young) + 1} in flight, {limit} allowed")
            flying[entry.number] = entry
    return None


CHECKERS: Mapping[str, Checker] = {
    "I1": check_prefixes,
    "I2": check_snapshots,
    "I3": check_changes,
    "I4": check_revisions,
    "I5": check_transactions,
    "I6": check_previous,
    "I7": check_removed,
    "I9": check_answers,
    "I11": check_in_flight,
}


def check_all(truth: Truth, log: Log) -> list[Violation]:
    """What each checker found."""
    return [found for checker in CHECKERS.values() if (found := checker(truth, log)) is not None]


# Which prefixes may apply where.


@dataclass(frozen=True)
class _Reading:
    """One entry of the log, and the prefixes at that moment."""

    at: int
    entry: object
    #: Prefixes that are registered for certain, and those that may be, because a call is under way.
    must: frozenset[str]
    may: frozenset[str]
    #: Prefixes of the last RESYNC without those that are surely, or perhaps, unregistered since.
    delivered_may: frozenset[str]
    delivered_must: frozenset[str]

    @property
    def filters(self) -> tuple[frozenset[str], ...]:
        """What an event may have been filtered with."""
        if self.delivered_may == self.delivered_must:
            return (self.delivered_must,)
        return (self.delivered_may, self.delivered_must)


def _read(log: Log) -> Iterable[_Reading]:
    must: set[str] = set()
    may: set[str] = set()
    delivered_may: set[str] = set()
    delivered_must: set[str] = set()
    for at, entry in enumerate(log.entries):
        if isinstance(entry, Watched):
            must, may = set(entry.prefixes), set(entry.prefixes)
            if not log.sourced:  # what a registry does not hold needs no RESYNC
                delivered_may, delivered_must = set(entry.prefixes), set(entry.prefixes)
        elif isinstance(entry, Asked):
            if entry.what == "register":
                (must if entry.over else may).add(entry.prefix)
            elif entry.what == "unregister":
                if entry.over:
                    may.discard(entry.prefix)
                    delivered_may.discard(entry.prefix)
                else:
                    must.discard(entry.prefix)
                    delivered_must.discard(entry.prefix)
        elif isinstance(entry, PutResync):
            delivered_may = set(entry.values)
            delivered_must = delivered_may & must
        yield _Reading(at, entry, frozenset(must), frozenset(may), frozenset(delivered_may), frozenset(delivered_must))


# Where in the truth a watcher may be.


@dataclass(frozen=True)
class _Place:
    epochs: frozenset[int]
    revision: int

    def reachable(self, truth: Truth) -> frozenset[int]:
        """The epochs that share the watcher's past: a rewind to a later revision cannot be noticed."""
        found = set()
        for epoch in self.epochs:
            found.add(epoch)
            while epoch + 1 < len(truth.epochs) and truth.epochs[epoch + 1].base >= self.revision:
                epoch += 1
                found.add(epoch)
        return frozenset(found)


#: After these the watcher may be in a later epoch. A source that went back, grew past what was seen and forgot how
#: cannot be told from one that only forgot; and what a queue did not take comes again as failed.
_LEAPS = (ResyncReason.REWOUND, ResyncReason.COMPACTED, ResyncReason.FAILED)


def _after_resync(truth: Truth, before: _Place | None, entry: PutResync) -> _Place:
    shown = _shown(entry)
    right = {n for n, epoch in enumerate(truth.epochs) if _under(epoch.fold(entry.revision), entry.values) == shown}
    if not right:
        right = set(range(len(truth.epochs)))  # that is I2's business
    if before is not None and entry.reason in _LEAPS:
        right = {n for n in right if n >= min(before.epochs)}
    elif before is not None:
        right &= before.reachable(truth)
    return _Place(frozenset(right), entry.revision)


def _after_change(
    truth: Truth, place: _Place, changes: Sequence[Seen], filters: Sequence[frozenset[str]]
) -> tuple[_Place | None, str]:
    groups = [(revision, list(group)) for revision, group in groupby(changes, key=lambda change: change.revision)]
    fitting, why = set(), ""
    for number in place.reachable(truth):
        why = _mismatch(truth, number, place.revision, groups, filters)
        if not why:
            fitting.add(number)
    if not fitting:
        return None, why
    return _Place(frozenset(fitting), groups[-1][0]), ""


def _mismatch(
    truth: Truth,
    number: int,
    revision: int,
    groups: Sequence[tuple[int, list[Seen]]],
    filters: Sequence[frozenset[str]],
) -> str:
    """Why the truth's commits of epoch *number* after *revision* do not come to *groups*; empty when they do."""
    waiting = list(truth.epochs[number].after(revision))
    for wanted, group in groups:
        while waiting and waiting[0].revision < wanted:
            skipped = waiting.pop(0)
            if all(_wanted([skipped], prefixes) for prefixes in filters):
                return f"revision {skipped.revision} was left out before {wanted}"
        if not waiting or waiting[0].revision != wanted:
            return f"the source has no revision {wanted} after {revision}"
        commit = waiting.pop(0)
        told = [(change.key, change.value) for change in group]
        if all(told != _wanted([commit], prefixes) for prefixes in filters):
            return f"revision {wanted}: told {told}, true {_wanted([commit], filters[0])}"
    return ""


def _wanted(commits: Iterable[object], prefixes: Iterable[str]) -> list[tuple[str, bytes | None]]:
    names = tuple(prefixes)
    return [(key, value) for commit in commits for key, value in commit.ops if key.startswith(names)]  # type: ignore[attr-defined]


def _under(state: Mapping[str, bytes], prefixes: Iterable[str]) -> dict[str, bytes]:
    names = tuple(prefixes)
    return {key: value for key, value in state.items() if key.startswith(names)}


def _shown(entry: PutResync) -> dict[str, bytes]:
    return {key: value for pairs in entry.values.values() for key, value in pairs.items()}


def _difference(right: Mapping[str, bytes], shown: Mapping[str, bytes]) -> str:
    missing = sorted(right.keys() - shown.keys())
    extra = sorted(shown.keys() - right.keys())
    other = sorted(key for key in right.keys() & shown.keys() if right[key] != shown[key])
    return f"missing {missing[:5]}, not there {extra[:5]}, other value {other[:5]}"


def _verdicts(log: Log) -> dict[int, bool]:
    """Which events were accepted: answered first without an error."""
    refused = {(entry.number, entry.refused) for entry in log.entries if isinstance(entry, Answering)}
    first = {entry.number for entry in log.entries if isinstance(entry, Answered) and entry.first}
    return {number: (number, True) not in refused for number in first}


def _answers_under_way(log: Log, at: int, number: int) -> bool:
    """True when another answer to *number* has begun before *at* and not ended: that one may be the first."""
    begun = sum(isinstance(entry, Answering) and entry.number == number for entry in log.entries[:at])
    ended = sum(isinstance(entry, Answered) and entry.number == number for entry in log.entries[: at + 1])
    return begun > ended


def _violation(invariant: str, log: Log, at: int, what: str) -> Violation:
    around = range(max(0, at - 6), min(len(log.entries), at + 3))
    lines = [f"{'->' if n == at else '  '} {n}: {_line(log.entries[n])}" for n in around]
    return Violation(invariant, log.name, what, at, "\n".join(lines))


def _line(entry: object) -> str:
    text = repr(entry)
    return text if len(text) < 600 else text[:600] + "…"
