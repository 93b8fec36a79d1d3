"""Recorded histories: the truth of the source, the log of each watcher, and the course of the whole cell.

The truth is a list of epochs: a source that is wiped or restored from a copy begins a new one, which shares its past
with the previous epoch up to ``base``. A log is the total order of the events, acknowledgements and calls of one
watcher. A course has the measurements for the invariants that no single log shows.

Times are those of the monotonic clock, which all processes of a machine share; durations are in seconds.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from types import MappingProxyType
from typing import NamedTuple

from datasync.events import Op, ResyncReason

#: Minimum operations between two states that are kept; the larger the state, the fewer are kept.
MARK = 500
#: States that are kept because they were requested last.
ASKED = 16
#: Size in bytes above which the truth and the logs keep only the length and digest of a value.
LONG = 1000


def brief(value: bytes) -> bytes:
    """The form of *value* in the truth and in the logs."""
    if len(value) <= LONG:
        return value
    return b"%d bytes %s" % (len(value), blake2b(value, digest_size=16).hexdigest().encode())


class Op1(NamedTuple):
    """One operation of a commit; *value* is None for a delete."""

    key: str
    value: bytes | None


class TruthCommit(NamedTuple):
    """One transaction that the source applied."""

    revision: int
    ops: tuple[Op1, ...]


class Epoch:
    """The history of the source in one epoch; up to *base* it is the history of the epoch *before*.

    Some states are kept and the others are folded from there: keeping a state for each commit would need too much
    memory. The value that each operation replaced is recorded with it.
    """

    def __init__(self, base: int = 0, before: Epoch | None = None) -> None:
        kept = 0 if before is None else before.position(base)
        self.base = base
        #: Time at which this epoch began.
        self.began = time.monotonic() if before is not None else 0.0
        self.commits: list[TruthCommit] = [] if before is None else before.commits[:kept]
        #: Time at which the writer learned of each commit; 0 if unknown.
        self.times: list[float] = [] if before is None else before.times[:kept]
        #: The values that the operations of each commit replaced, in order; None where there was no value.
        self.previous: list[tuple[bytes | None, ...]] = [] if before is None else before.previous[:kept]
        #: The state after the last commit.
        self.state: dict[str, bytes] = {} if before is None else dict(before.fold(base))
        self._revisions: list[int] = [] if before is None else before._revisions[:kept]
        #: Kept states with the number of commits that they include.
        self._marks: list[tuple[int, dict[str, bytes]]] = (
            [(0, {})] if before is None else [mark for mark in before._marks if mark[0] <= kept]
        )
        self._unmarked = 0
        self._asked: OrderedDict[int, Mapping[str, bytes]] = OrderedDict()

    def record(self, commit: TruthCommit, moment: float) -> None:
        """Add the next commit."""
        if self._revisions and commit.revision <= self._revisions[-1]:
            raise ValueError(f"revision {commit.revision} was recorded after {self._revisions[-1]}")
        self.previous.append(tuple(self.state.get(key) for key, _ in commit.ops))
        apply(self.state, commit)
        self.commits.append(commit)
        self.times.append(moment)
        self._revisions.append(commit.revision)
        self._unmarked += len(commit.ops)
        if self._unmarked > max(MARK, len(self.state)):
            self._marks.append((len(self.commits), dict(self.state)))
            self._unmarked = 0

    def position(self, revision: int) -> int:
        """The number of commits up to *revision*."""
        return bisect_right(self._revisions, revision)

    def fold(self, revision: int) -> Mapping[str, bytes]:
        """The state at *revision*, which must not be altered."""
        count = self.position(revision)
        known = self._asked.pop(count, None)
        if known is None:
            start, mark = self._marks[bisect_right(self._marks, count, key=lambda mark: mark[0]) - 1]
            state = dict(mark)
            for commit in self.commits[start:count]:
                apply(state, commit)
            known = state
        self._asked[count] = known  # several watchers request the same state one after another
        if len(self._asked) > ASKED:
            self._asked.popitem(last=False)
        return known

    def at(self, revision: int) -> int | None:
        """The index in ``commits`` of the commit that made *revision*."""
        place = self.position(revision) - 1
        return place if place >= 0 and self._revisions[place] == revision else None

    def after(self, revision: int) -> Sequence[TruthCommit]:
        """The commits above *revision*."""
        return self.commits[self.position(revision) :]


def apply(state: dict[str, bytes], commit: TruthCommit) -> None:
    """Apply *commit* to *state*."""
    for key, value in commit.ops:
        if value is None:
            state.pop(key, None)
        else:
            state[key] = value


class Truth:
    """Every commit of every epoch, recorded by the only writer. Threads: the writer's; read at the end."""

    def __init__(self) -> None:
        #: True where the source has no history: what happened between two events comes as its net effect.
        self.net_effects = False
        self.epochs: list[Epoch] = [Epoch()]
        self._ever: set[Op1] | None = None

    def record(self, revision: int, ops: Iterable[Op1], moment: float | None = None) -> None:
        """Record a transaction that the source has just applied."""
        self._ever = None
        commit = TruthCommit(revision, tuple(ops))
        self.epochs[-1].record(commit, time.monotonic() if moment is None else moment)

    def rewind(self, base: int) -> None:
        """Record that the source lost everything above *base*."""
        self._ever = None
        self.epochs.append(Epoch(base, self.epochs[-1]))

    def had(self, key: str, value: bytes) -> bool:
        """True when *key* had *value* at some time; called at the end."""
        if self._ever is None:
            self._ever = {op for epoch in self.epochs for commit in epoch.commits for op in commit.ops}
        return (key, value) in self._ever

    @property
    def state(self) -> Mapping[str, bytes]:
        """The current state of the source: a view that follows each commit."""
        return MappingProxyType(self.epochs[-1].state)


class Seen(NamedTuple):
    """One change inside a CHANGE, as the watcher saw it."""

    key: str
    op: Op
    revision: int
    value: bytes | None
    previous: bytes | None


class Gone(NamedTuple):
    """One pair of ``get_removed``."""

    key: str
    value: bytes
    revision: int


@dataclass(slots=True)
class Watched:
    """The subscription began."""

    time: float
    prefixes: tuple[str, ...]
    in_flight: int


@dataclass(slots=True)
class PutEvent:
    """An event was put on the watcher's queue; *number* counts them."""

    time: float
    number: int


@dataclass(slots=True)
class PutChange(PutEvent):
    changes: list[Seen]
    #: True when the event brings keys again that were not accepted.
    redelivery: bool = False
    #: Name of the member of an aggregate that sent it.
    source: str = ""


@dataclass(slots=True)
class PutResync(PutEvent):
    reason: ResyncReason
    revision: int
    values: dict[str, dict[str, bytes]]
    removed: list[Gone]
    source: str = ""


@dataclass(slots=True)
class Answering:
    """The call of ``done`` of event *number*, with an error or without."""

    time: float
    number: int
    refused: bool
    #: The keys that ``Rejected`` named; None when the answer is to the whole event.
    keys: frozenset[str] | None = None
    #: Seconds after which keys are wanted again, where the answer said so (``RetryAfter``).
    after: Mapping[str, float] = field(default_factory=dict)

    def refuses(self, key: str) -> bool:
        """True when *key* was not accepted."""
        return self.refused and (self.keys is None or key in self.keys)


@dataclass(slots=True)
class Answered:
    """The return of ``done``; *first* is its result."""

    time: float
    number: int
    first: bool


@dataclass(slots=True)
class Asked:
    """A call of the watcher's registration: *what* is register, unregister or close."""

    time: float
    what: str
    prefix: str
    #: False when the call begins, True when it has returned.
    over: bool


Entry = Watched | PutChange | PutResync | Answering | Answered | Asked


@dataclass
class Log:
    """The entries of one watcher, in order; of an aggregate, those of one member."""

    name: str
    #: Seconds after which an unacknowledged event had to be abandoned.
    abandon: float
    entries: list[Entry] = field(default_factory=list)
    #: True when the source had healed and everything had to be delivered before the log ended.
    complete: bool = True
    #: True when a reader feeds the registry: a RESYNC comes first, and commits may be merged into one event.
    sourced: bool = True
    #: Time at which the log ended.
    end: float = 0.0
    #: True for a consumer that acknowledges each event at once, through queues with room: failures of other consumers
    #: must not affect it.
    prompt: bool = False
    #: Seconds before a key, or a failed RESYNC, is delivered again: the first pause and the longest.
    backoff: tuple[float, float] = (1.0, 300.0)
    #: Keys per second that are delivered again, and the most at once.
    redeliveries: tuple[float, int] = (10.0, 100)
    #: Name of the member of an aggregate whose events these are.
    source: str = ""

    def puts(self) -> list[PutChange | PutResync]:
        """The events."""
        return [entry for entry in self.entries if isinstance(entry, PutEvent)]


class Strike(NamedTuple):
    """A misfortune that happened; from *begin* to *end* the source or the connection to it was disturbed."""

    name: str
    begin: float
    end: float


class Silence(NamedTuple):
    """A half-open connection (I14)."""

    #: Time at which the black hole began.
    begin: float
    #: Time at which the status of the transport showed it (``DOWN``, or one more reconnect); None if it never did.
    noticed: float | None
    #: Seconds within which it must be detected: the driver's idle limit plus 1.
    limit: float
    #: Time at which the black hole ended; None when it lasted until it was detected, or to the end.
    ended: float | None = None


class Sample(NamedTuple):
    """The process under test at one moment (I12): *rss* in bytes, *pending* in changes by name of the watcher."""

    time: float
    rss: int
    threads: int
    descriptors: int
    pending: Mapping[str, int]
    #: Bytes of keys and values that the source had applied by then.
    written: int = 0
    #: Estimated bytes that the records of the harness took by then in the same process.
    recorded: int = 0


class Closing(NamedTuple):
    """A ``close()`` that took *seconds*, with a limit of *bound* (I15); *what* names the object and the caller."""

    what: str
    seconds: float
    bound: float


class Footprint(NamedTuple):
    """Resources before the first watcher, or after the last one (I16)."""

    threads: int
    descriptors: int
    #: Watchers that the server counts; None if it does not report them.
    server_watchers: int | None = None
    #: Names of the threads, to identify one that was left behind.
    names: tuple[str, ...] = ()


class Fork(NamedTuple):
    """The use of a parent's handle in a child (I17)."""

    #: The moment or kind of the fork, and the handle.
    what: str
    #: ``"works"``, the name of the exception that the use raised (``"ForkedError"``), or another outcome.
    answer: str
    #: Duration of the use, and its limit.
    seconds: float
    limit: float
    #: What was wrong with the parent's handle afterwards; empty when it still worked.
    parent: str


@dataclass
class Course:
    """Measurements of a cell. A field that is not set was not measured, and proves nothing."""

    #: Times at which a RESYNC was requested explicitly, which skips the backoff.
    requests: list[float] = field(default_factory=list)
    #: Times at which the last fault had healed, and at which every view was correct; None if that never happened.
    healed: float | None = None
    converged: float | None = None
    strikes: list[Strike] = field(default_factory=list)
    silences: list[Silence] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    #: The ``MAX_PENDING`` that was in force while the samples were taken.
    max_pending: int = 10_000
    closings: list[Closing] = field(default_factory=list)
    before: Footprint | None = None
    after: Footprint | None = None
    #: Times of the connection attempts of all *clients*, as the server or a proxy saw them (I13).
    attempts: list[float] = field(default_factory=list)
    clients: int = 0
    #: The time span in which the server accepted no connections; attempts are recorded until 30 s after it.
    away: tuple[float, float] | None = None
    forks: list[Fork] = field(default_factory=list)
    #: Factor by which threads were slower than on an idle machine; limits in seconds are multiplied by it.
    slowdown: float = 1.0
