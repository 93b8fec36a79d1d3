"""A correct client, written from the contract and not from the library: checkers must pass its logs.

The caller decides which events it gets, and it writes the log that must follow from that.
"""

from __future__ import annotations

from collections.abc import Collection

from datasync.events import Op, ResyncReason
from tests.faults.checkers.reading import longest, under
from tests.faults.history import (
    Answered,
    Answering,
    Asked,
    Entry,
    Gone,
    Log,
    PutChange,
    PutResync,
    Seen,
    Truth,
    Watched,
)

#: Seconds from one entry of a log to the next.
STEP = 0.1
#: Seconds after which an unacknowledged event is abandoned.
ABANDON = 60.0
#: What an event is answered with: False accepts it, True refuses all of it, keys are those that are rejected.
Refused = bool | Collection[str]


class Honest:
    """The log of one watcher in the epoch number *epoch* of *truth*, which the caller may change."""

    def __init__(
        self, truth: Truth, prefixes: tuple[str, ...], *, in_flight: int = 1, epoch: int = -1, name: str = "client"
    ) -> None:
        self.truth = truth
        self.epoch = epoch
        self.prefixes = prefixes
        self.log = Log(name, ABANDON)
        self.clock = 0.0
        self._named = prefixes  # prefixes of the last RESYNC that are still registered
        self._number = -1
        self._offered: dict[str, tuple[bytes, int]] = {}
        #: The owed keys, each with what was accepted last; and what was told last of each key, with the revision.
        self.owed: dict[str, bytes | None] = {}
        self._told: dict[str, tuple[bytes | None, int]] = {}
        self._revision = 0
        self._add(Watched(self._now(), prefixes, in_flight))

    def resync(self, reason: ResyncReason, revision: int, *, refuse: Refused = False) -> int:
        """Put and acknowledge the full state at *revision*; return the number of the event."""
        state = self.truth.epochs[self.epoch].fold(revision)
        values: dict[str, dict[str, bytes]] = {prefix: {} for prefix in self.prefixes}
        for key, value in under(state, self.prefixes).items():
            prefix = longest(key, self.prefixes)
            assert prefix is not None
            values[prefix][key] = value
        gone = {
            key: Gone(key, value, at)
            for key, (value, at) in self._offered.items()
            if key not in state and longest(key, self.prefixes) is not None
        }
        kept = {key: self._offered[key] for key in gone if _refuses(refuse, key)}
        self._revision = revision
        self._told = {
            key: (value, self._written(key, revision)) for pairs in values.values() for key, value in pairs.items()
        }
        if refuse is not True:
            self.owed = dict.fromkeys(refuse or ())
        self._offered = kept | {key: (value, revision) for pairs in values.values() for key, value in pairs.items()}
        self._named = self.prefixes
        number = self._next()
        self._add(PutResync(self._now(), number, reason, revision, values, list(gone.values())))
        self._answer(number, refuse)
        return number

    def change(self, *revisions: int, refuse: Refused = False) -> int | None:
        """Put and acknowledge the commits of *revisions* as one event; None when no prefix matches."""
        number = self.put(*revisions, refuse=refuse)
        if number is not None:
            self._answer(number, refuse)
        return number

    def redeliver(self, *keys: str, refuse: Refused = False) -> int:
        """Put *keys*, which are owed, again, and acknowledge them."""
        changes = []
        for key in keys:
            value, revision = self._told.get(key, (None, self._revision))
            changes.append(self._seen(key, value, self.owed[key], revision, refuse))
        number = self._next()
        self._add(PutChange(self._now(), number, changes, True))
        self._answer(number, refuse)
        return number

    def put(self, *revisions: int, refuse: Refused = False) -> int | None:
        """Put as ``change`` does; ``answer`` acknowledges later. *refuse* says what is going to be rejected."""
        epoch = self.truth.epochs[self.epoch]
        changes = []
        for revision in revisions:
            place = epoch.at(revision)
            assert place is not None
            for (key, value), previous in zip(epoch.commits[place].ops, epoch.previous[place], strict=True):
                if key.startswith(self._named):
                    changes.append(self._seen(key, value, previous, revision, refuse))
        if not changes:
            return None
        number = self._next()
        self._add(PutChange(self._now(), number, changes))
        return number

    def answer(self, *numbers: int) -> None:
        """Accept these events, in this order."""
        for number in numbers:
            self._answer(number, False)

    def watches(self, key: str) -> bool:
        """True when changes of *key* are delivered."""
        return key.startswith(self._named)

    @property
    def last_keys(self) -> set[str]:
        """The keys of the last CHANGE."""
        put = self.log.puts()[-1]
        return {change.key for change in put.changes} if isinstance(put, PutChange) else set()

    def register(self, prefix: str) -> None:
        self._add(Asked(self._now(), "register", prefix, False))
        self.prefixes = (*self.prefixes, prefix)
        self._add(Asked(self._now(), "register", prefix, True))

    def unregister(self, prefix: str) -> None:
        self._add(Asked(self._now(), "unregister", prefix, False))
        self.prefixes = tuple(one for one in self.prefixes if one != prefix)
        self._named = tuple(one for one in self._named if one != prefix)
        self._offered = {key: pair for key, pair in self._offered.items() if key.startswith(self._named)}
        self.owed = {key: value for key, value in self.owed.items() if key.startswith(self.prefixes)}
        self._add(Asked(self._now(), "unregister", prefix, True))

    def close(self) -> None:
        self._add(Asked(self._now(), "close", "", False))
        self._add(Asked(self._now(), "close", "", True))

    def _seen(self, key: str, value: bytes | None, previous: bytes | None, revision: int, refuse: Refused) -> Seen:
        self._told[key] = (value, revision)
        self._revision = max(self._revision, revision)
        if value is not None:
            self._offered[key] = (value, revision)
        elif not _refuses(refuse, key):
            self._offered.pop(key, None)
        if _refuses(refuse, key):
            self.owed.setdefault(key, previous)
        else:
            self.owed.pop(key, None)
        return Seen(key, Op.DELETE if value is None else Op.PUT, revision, value, previous)

    def _answer(self, number: int, refuse: Refused) -> None:
        keys = None if isinstance(refuse, bool) else frozenset(refuse)
        self._add(Answering(self._now(), number, bool(refuse), keys))
        self._add(Answered(self._now(), number, True))

    def _written(self, key: str, revision: int) -> int:
        """The revision at which *key* got the value that it has at *revision*."""
        epoch = self.truth.epochs[self.epoch]
        commits = epoch.commits[: epoch.position(revision)]
        return next(commit.revision for commit in reversed(commits) if key in dict(commit.ops))

    def _next(self) -> int:
        self._number += 1
        return self._number

    def _add(self, entry: Entry) -> None:
        self.log.entries.append(entry)
        self.log.end = self.clock

    def _now(self) -> float:
        self.clock += STEP
        return self.clock


def _refuses(refuse: Refused, key: str) -> bool:
    return refuse if isinstance(refuse, bool) else key in refuse
