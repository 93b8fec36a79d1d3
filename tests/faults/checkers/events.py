"""The invariants of events and their order (I1, I2, I4-I7), checked on the log of a watcher and the recorded truth.

Each checker returns the first violation or None, in time linear in the size of the log.

Source: contract, clauses C2-C7, C11 and C13.
"""

from __future__ import annotations

from datasync.events import Op, ResyncReason
from tests.faults.checkers.reading import Reading, Violation, shown, under
from tests.faults.checkers.sequence import fitting_epochs
from tests.faults.history import Asked, Op1, PutChange, PutResync, Truth, Watched

#: Maximum changes of an event that merges several transactions.
MAX_BATCH = 1000


def check_prefixes(truth: Truth, reading: Reading) -> Violation | None:
    """I1: only registered prefixes; each key under its longest prefix; an entry for every prefix (C5, C11)."""
    owed: dict[str, int] = {}  # prefixes that still need a RESYNC, with the index of the entry that required it
    asking: set[str] = set()  # prefixes whose register call has not returned; a RESYNC may include them already
    known: set[str] = set()  # prefixes that must be included: registered at the beginning, or in the last RESYNC
    names: tuple[str, ...] = ()
    scope_of_names = None
    for at, entry, scope in reading.steps:
        if isinstance(entry, PutChange):
            if scope is not scope_of_names:
                names, scope_of_names = tuple(scope.delivered_may), scope
            for change in entry.changes:
                if not change.key.startswith(names):
                    return reading.violation("I1", at, f"{change.key!r} has no prefix that was asked for")
        elif isinstance(entry, PutResync):
            named = set(entry.values)
            if wrong := _wrongly_sorted(entry, scope.may):
                return reading.violation("I1", at, wrong)
            if overlooked := known - named:
                return reading.violation("I1", at, f"the RESYNC has no entry for {overlooked}")
            known = set(scope.delivered_must)
            asking -= named
            # A prefix that was registered while this RESYNC was being put is included in the next one.
            owed = {prefix: owed.get(prefix, at) for prefix in scope.must - named}
        elif isinstance(entry, Asked) and entry.what == "register":
            if not entry.over:
                asking.add(entry.prefix)
            elif entry.prefix in asking:
                asking.discard(entry.prefix)
                owed[entry.prefix] = at
        elif isinstance(entry, Asked) and entry.what == "unregister":
            owed.pop(entry.prefix, None)
            known.discard(entry.prefix)
        elif isinstance(entry, Asked) and entry.what == "close":
            owed = {}
        elif isinstance(entry, Watched):
            known = set(entry.prefixes)
    if owed and reading.log.complete:
        return reading.violation("I1", max(owed.values()), f"no RESYNC ever brought the prefixes {set(owed)}")
    return None


def _wrongly_sorted(entry: PutResync, may: frozenset[str]) -> str:
    """The error in the prefixes of a RESYNC; empty if there is none."""
    if strangers := set(entry.values) - may:
        return f"the RESYNC names prefixes nobody registered: {strangers}"
    for prefix, pairs in entry.values.items():
        longer = tuple(other for other in entry.values if len(other) > len(prefix) and other.startswith(prefix))
        for key in pairs:
            if not key.startswith(prefix) or key.startswith(longer):
                return f"{key!r} stands under {prefix!r}"
    names = tuple(entry.values)
    for gone in entry.removed:
        if not gone.key.startswith(names):
            return f"{gone.key!r} was removed, and nobody asked for it"
    return ""


def check_snapshots(truth: Truth, reading: Reading) -> Violation | None:
    """I2: each RESYNC is the state of the truth at its revision, in some epoch (C2)."""
    for at, entry, _ in reading.steps:
        if isinstance(entry, PutResync) and next(fitting_epochs(truth, entry), None) is None:
            right, pairs = under(truth.epochs[-1].fold(entry.revision), entry.values), shown(entry)
            missing = sorted(right.keys() - pairs.keys())
            extra = sorted(pairs.keys() - right.keys())
            other = sorted(key for key in right.keys() & pairs.keys() if right[key] != pairs[key])
            what = f"missing {missing[:5]}, not there {extra[:5]}, other value {other[:5]}"
            return reading.violation("I2", at, f"revision {entry.revision}: {what}")
    return None


def check_revisions(truth: Truth, reading: Reading) -> Violation | None:
    """I4: revisions increase, unless a RESYNC reports a rewind, which it does only after one (C3, C6).

    A redelivery has the revision of what was told of its key last, or a later one for a delete (C10).
    """
    for key in reading.redelivered:
        revision, told = key.change.revision, key.told
        if told.exactly and told.value is not None and key.change.value is not None:
            right = revision == told.revision
        else:
            right = revision <= told.revision if key.change.value is not None else revision >= told.revision
        if not right:
            what = f"{key.change.key!r} comes again at {revision}, and was told at {told.revision}"
            return reading.violation("I4", key.at, what)
    last = -1
    for at, entry, _ in reading.steps:
        if isinstance(entry, PutChange):
            if entry.redelivery:
                continue
            revision = last
            for change in entry.changes:
                if change.revision <= last or change.revision < revision:
                    return reading.violation("I4", at, f"{change.key!r}: revision {change.revision} after {revision}")
                revision = change.revision
            last = revision
        elif isinstance(entry, PutResync):
            if entry.reason is ResyncReason.REWOUND and len(truth.epochs) == 1:
                return reading.violation("I4", at, "the source is said to have gone back, and never did")
            if entry.revision < last and entry.reason is not ResyncReason.REWOUND:
                return reading.violation("I4", at, f"a RESYNC goes back from {last} to {entry.revision}")
            last = entry.revision
    return None


def check_transactions(truth: Truth, reading: Reading) -> Violation | None:
    """I5: a transaction is never split into two events, redeliveries apart (C4, C10)."""
    seen: set[int] = set()
    for at, entry, _ in reading.steps:
        if isinstance(entry, PutResync):
            rewound = entry.reason is ResyncReason.REWOUND
            seen = set() if rewound else {revision for revision in seen if revision > entry.revision}
        elif isinstance(entry, PutChange):
            revisions = {change.revision for change in entry.changes}
            if entry.redelivery:
                if len(entry.changes) > MAX_BATCH:
                    return reading.violation("I5", at, f"{len(entry.changes)} keys come again in one event")
                if len({change.key for change in entry.changes}) != len(entry.changes):
                    return reading.violation("I5", at, "a key stands twice in one event")
                continue
            if not revisions.isdisjoint(seen):
                split = revisions & seen
                return reading.violation("I5", at, f"the transaction at {split} came in an earlier event already")
            if len(revisions) > 1 and not reading.log.sourced:
                return reading.violation("I5", at, "the transactions of several callers are in one event")
            if len(revisions) > 1 and len(entry.changes) > MAX_BATCH:
                return reading.violation("I5", at, f"{len(entry.changes)} changes were merged into one event")
            if len({change.key for change in entry.changes}) != len(entry.changes):
                return reading.violation("I5", at, "a key stands twice in one event")
            seen |= revisions
    return None


def check_previous(truth: Truth, reading: Reading) -> Violation | None:
    """I6: each previous value is the value in the truth just before (C6); of a redelivery, what was accepted last."""
    for redelivered in reading.redelivered:
        if (previous := redelivered.change.previous) not in redelivered.accepted:
            accepted = set(redelivered.accepted)
            what = f"{redelivered.change.key!r} comes again with {previous!r} before, accepted was {accepted}"
            return reading.violation("I6", redelivered.at, what)
    if truth.net_effects:
        return _previous_of_net_effects(reading)
    replaced: list[dict[Op1, bytes | None]] = []  # by the commit of the last change, in each epoch
    of: int | None = None
    for at, entry, _ in reading.steps:
        if not isinstance(entry, PutChange) or entry.redelivery:
            continue
        for key, op, revision, value, previous in entry.changes:
            if revision != of:
                replaced, of = _replaced(truth, revision), revision
            right = {pairs[Op1(key, value)] for pairs in replaced if (key, value) in pairs}
            if right and previous not in right:
                return reading.violation("I6", at, f"{key!r} had {right}, not {previous!r}")
            if op is Op.DELETE and previous is None:
                return reading.violation("I6", at, f"{key!r} was deleted and had not been there")
    return None


def _previous_of_net_effects(reading: Reading) -> Violation | None:
    """I6 where several changes of a key may come as one: its previous value is the one that was told before."""
    known: dict[str, bytes | None] = {}
    for at, entry, _ in reading.steps:
        if isinstance(entry, PutResync):
            known = dict(shown(entry))
        elif isinstance(entry, Asked):
            known = {}  # what changes under a prefix that comes or goes is not told
        elif isinstance(entry, PutChange) and not entry.redelivery:
            for key, op, _, value, previous in entry.changes:
                if key in known and previous != known[key]:
                    return reading.violation("I6", at, f"{key!r} had {known[key]!r}, not {previous!r}")
                if op is Op.DELETE and previous is None:
                    return reading.violation("I6", at, f"{key!r} was deleted and had not been there")
                known[key] = value
    return None


def _replaced(truth: Truth, revision: int) -> list[dict[Op1, bytes | None]]:
    found = []
    for number, epoch in enumerate(truth.epochs):
        place = epoch.at(revision) if number == 0 or revision > epoch.base else None  # otherwise of the epoch before
        if place is not None:
            found.append(dict(zip(epoch.commits[place].ops, epoch.previous[place], strict=True)))
    return found


def check_removed(truth: Truth, reading: Reading) -> Violation | None:
    """I7: a RESYNC lists what was delivered before and is deleted, and nothing that exists (C7).

    Only an accepted delete counts as delivered: one that was rejected or not acknowledged is listed again, until an
    event that tells of it is accepted.
    """
    offered: dict[str, int] = {}  # key to the revision at which it was delivered last
    for at, entry, scope in reading.steps:
        if isinstance(entry, PutChange):
            for change in entry.changes:
                if change.op is Op.PUT:
                    offered[change.key] = change.revision
                elif reading.told(entry.number, change.key):
                    offered.pop(change.key, None)
        elif isinstance(entry, Asked) and entry.what == "unregister":
            names = tuple(scope.delivered_must)
            offered = {key: revision for key, revision in offered.items() if key.startswith(names)}
        elif isinstance(entry, PutResync):
            there = shown(entry)
            if wrong := _wrongly_removed(truth, entry, there, offered):
                return reading.violation("I7", at, wrong)
            answer = reading.answers.get(entry.number)
            offered = {key: at for key, at in offered.items() if answer is None or answer.refuses(key)}
            offered.update(dict.fromkeys(there, entry.revision))
    return None


def _wrongly_removed(truth: Truth, entry: PutResync, there: dict[str, bytes], offered: dict[str, int]) -> str:
    """The error in the removed keys of a RESYNC; empty if there is none."""
    listed = {gone.key for gone in entry.removed}
    if len(listed) != len(entry.removed):
        return "a key was removed twice"
    if still := listed & there.keys():
        return f"removed and yet there: {still}"
    names = tuple(entry.values)
    if untold := {key for key in offered if key not in there and key not in listed and key.startswith(names)}:
        return f"gone, and not told: {untold}"
    for gone in entry.removed:
        if not truth.had(gone.key, gone.value):
            return f"{gone.key!r} never had the value it was removed with"
    return ""
