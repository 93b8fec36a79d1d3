"""What really happened at the source, and what one watcher saw of it.

The truth is a list of epochs: a source that is wiped or restored from a copy begins a new one, which shares its past
with the one before up to ``base``. A log is the total order of what one watcher was given, answered and asked for.
A course is what was measured around the watchers, for the invariants that no log shows.

Every moment is of the monotonic clock, which all processes of a machine share; every span is in seconds.
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

#: Operations between two states that are kept, at least; a large state is kept as seldom as it is large.
MARK = 500
#: States that are kept because they were asked for last.
ASKED = 16
#: Bytes of a value beyond which only its length and its digest are kept, in the truth and in the logs alike.
LONG = 1000


def brief(value: bytes) -> bytes:
    """What stands for *value* in the truth and in the logs."""
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
    """The whole history of the source in one of its lives; up to *base* it is that of the life *before*.

    A state is kept now and then and the rest is folded from there: keeping the state of each commit would need the
    product of both. The value that each operation replaced is noted as it is recorded.
    """

    def __init__(self, base: int = 0, before: Epoch | None = None) -> None:
        kept = 0 if before is None else before.position(base)
        self.base = base
        #: When this life began.
        self.began = time.monotonic() if before is not None else 0.0
        self.commits: list[TruthCommit] = [] if before is None else before.commits[:kept]
        #: When the writer heard of each commit; 0 where nobody says.
        self.times: list[float] = [] if before is None else before.times[:kept]
        #: What the operations of each commit replaced, in their order; None where there was nothing.
        self.previous: list[tuple[bytes | None, ...]] = [] if before is None else before.previous[:kept]
        #: The state after the last commit.
        self.state: dict[str, bytes] = {} if before is None else dict(before.fold(base))
        self._revisions: list[int] = [] if before is None else before._revisions[:kept]
        #: States by the number of commits that they are made of, with the operations since the last one.
        self._marks: list[tuple[int, dict[str, bytes]]] = (
            [(0, {})] if before is None else [mark for mark in before._marks if mark[0] <= kept]
        )
        self._unmarked = 0
        self._asked: OrderedDict[int, Mapping[str, bytes]] = OrderedDict()

    def record(self, commit: TruthCommit, moment: float) -> None:
        """*commit* is the next one."""
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
        """How many commits there are up to *revision*."""
        return bisect_right(self._revisions, revision)

    def fold(self, revision: int) -> Mapping[str, bytes]:
        """The state at *revision*; not to be altered."""
        count = self.position(revision)
        known = self._asked.pop(count, None)
        if known is None:
            start, mark = self._marks[bisect_right(self._marks, count, key=lambda mark: mark[0]) - 1]
            state = dict(mark)
            for commit in self.commits[start:count]:
                apply(state, commit)
            known = state
        self._asked[count] = known  # several watchers ask for the same one, soon after each other
        if len(self._asked) > ASKED:
            self._asked.popitem(last=False)
        return known

    def at(self, revision: int) -> int | None:
        """The place of the commit that made *revision* in ``commits``."""
        place = self.position(revision) - 1
        return place if place >= 0 and self._revisions[place] == revision else None

    def after(self, revision: int) -> Sequence[TruthCommit]:
        """The commits above *revision*."""
        return self.commits[self.position(revision) :]


def apply(state: dict[str, bytes], commit: TruthCommit) -> None:
    """Change *state* as *commit* does."""
    for key, value in commit.ops:
        if value is None:
            state.pop(key, None)
        else:
            state[key] = value


class Truth:
    """Every commit of every epoch, recorded by the only one who writes. Threads: the writer's; read at the end."""

    def __init__(self) -> None:
        self.epochs: list[Epoch] = [Epoch()]
        self._ever: set[Op1] | None = None

    def record(self, revision: int, ops: Iterable[Op1], moment: float | None = None) -> None:
        """The source applied a transaction, a moment ago."""
        self._ever = None
        commit = TruthCommit(revision, tuple(ops))
        self.epochs[-1].record(commit, time.monotonic() if moment is None else moment)

    def rewind(self, base: int) -> None:
        """The source lost everything above *base*."""
        self._ever = None
        self.epochs.append(Epoch(base, self.epochs[-1]))

    def had(self, key: str, value: bytes) -> bool:
        """True when *key* had *value* at some time; asked when all is over."""
        if self._ever is None:
            self._ever = {op for epoch in self.epochs for commit in epoch.commits for op in commit.ops}
        return (key, value) in self._ever

    @property
    def state(self) -> Mapping[str, bytes]:
        """What the source holds now: not a copy, it follows each commit."""
        return MappingProxyType(self.epochs[-1].state)


class Seen(NamedTuple):
    """One change inside a CHANGE, as the watcher saw it."""

    key: str
    op: Op
    revision: int
    value: bytes | None
    previous: bytes | None


class Gone(NamedTuple):
    """One pair out of ``get_removed``."""

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


@dataclass(slots=True)
class PutResync(PutEvent):
    reason: ResyncReason
    revision: int
    values: dict[str, dict[str, bytes]]
    removed: list[Gone]


@dataclass(slots=True)
class Answering:
    """``done`` of event *number* is being called, with an error or without."""

    time: float
    number: int
    refused: bool


@dataclass(slots=True)
class Answered:
    """``done`` returned; *first* is what it said."""

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
    """What happened to one watcher, in order."""

    name: str
    #: Seconds after which an unanswered event was to be given up.
    abandon: float
    entries: list[Entry] = field(default_factory=list)
    #: True when the source had healed and everything was to be delivered before the log ended.
    complete: bool = True
    #: True when a reader feeds the registry; then a RESYNC comes first, and commits may be merged into one event.
    sourced: bool = True
    #: When the log ended.
    end: float = 0.0
    #: True for a consumer that takes and answers each event at once, through queues with room: it must not notice what
    #: goes wrong with others.
    prompt: bool = False
    #: Seconds before the RESYNC that follows a failed event: the first pause and the longest (``FAILURE_BACKOFF``).
    backoff: tuple[float, float] = (1.0, 300.0)

    def puts(self) -> list[PutChange | PutResync]:
        """The events."""
        return [entry for entry in self.entries if isinstance(entry, PutEvent)]


class Strike(NamedTuple):
    """A misfortune that really happened; from *begin* to *end* the source or the way to it was not well."""

    name: str
    begin: float
    end: float


class Silence(NamedTuple):
    """A connection that passed nothing any more and said nothing of it (I14)."""

    #: When the black hole began.
    begin: float
    #: When the transport's status first said so (``DOWN``, or one more reconnect); None when it never did.
    noticed: float | None
    #: Seconds that noticing may take: the driver's idle limit plus 1.
    limit: float
    #: When the black hole ended; None when it lasted until it was noticed, or to the end.
    ended: float | None = None


class Sample(NamedTuple):
    """The process under test at one moment (I12). *rss* in bytes, *pending* in changes, by name of the watcher."""

    time: float
    rss: int
    threads: int
    descriptors: int
    pending: Mapping[str, int]
    #: Bytes of keys and values that the source had applied by then.
    written: int = 0
    #: Bytes that the records of the harness itself took by then in the same process, as far as it knows.
    recorded: int = 0


class Closing(NamedTuple):
    """A ``close()`` that took *seconds*, and was to take at most *bound* (I15); *what* says of what and from where."""

    what: str
    seconds: float
    bound: float


class Footprint(NamedTuple):
    """What was there before the first watcher, or after the last one (I16)."""

    threads: int
    descriptors: int
    #: Watchers that the server itself counts; None where it does not say.
    server_watchers: int | None = None
    #: Names of the threads, so that one which was left behind can be told.
    names: tuple[str, ...] = ()


class Fork(NamedTuple):
    """What a child did with a handle that its parent had open (I17)."""

    #: The moment or the manner of the fork, and the handle.
    what: str
    #: ``"works"``, the name of the exception that its use raised (``"ForkedError"``), or what else became of it.
    answer: str
    #: How long the answer took, and how long it may take.
    seconds: float
    limit: float
    #: What was wrong with the parent's handle afterwards; empty when it was used again and went on as before.
    parent: str


@dataclass
class Course:
    """What was measured around the watchers. What is not filled in was not measured, and proves nothing."""

    #: When somebody asked for RESYNCs in person: those wait for no backoff.
    requests: list[float] = field(default_factory=list)
    #: When the last fault had healed, and when every view was right; None when it never was.
    healed: float | None = None
    converged: float | None = None
    strikes: list[Strike] = field(default_factory=list)
    silences: list[Silence] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    #: ``MAX_PENDING`` as it was in force while the samples were taken.
    max_pending: int = 10_000
    closings: list[Closing] = field(default_factory=list)
    before: Footprint | None = None
    after: Footprint | None = None
    #: Each attempt of any of *clients* to reach the server, as the server or a proxy in front of it saw it (I13).
    attempts: list[float] = field(default_factory=list)
    clients: int = 0
    #: From when to when the server took no connections; attempts are to be recorded meanwhile and for 30 s after.
    away: tuple[float, float] | None = None
    forks: list[Fork] = field(default_factory=list)
    #: The factor by which threads were slower than on an idle machine: limits of seconds are multiplied by it.
    slowdown: float = 1.0
