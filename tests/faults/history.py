"""What really happened at the source, and what one watcher saw of it.

The truth is a list of epochs: a source that is wiped or restored from a copy begins a new one, which shares its past
with the one before up to ``base``. A log is the total order of what one watcher was given, answered and asked for.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from datasync.events import Op, ResyncReason


class Op1(NamedTuple):
    """One operation of a commit; *value* is None for a delete."""

    key: str
    value: bytes | None


class TruthCommit(NamedTuple):
    """One transaction that the source applied."""

    revision: int
    ops: tuple[Op1, ...]


@dataclass
class Epoch:
    """The whole history of the source in one of its lives; up to *base* it is that of the life before."""

    base: int
    commits: list[TruthCommit]
    _states: dict[int, dict[str, bytes]] = field(default_factory=dict, repr=False)
    _index: dict[int, int] = field(default_factory=dict, repr=False)

    def fold(self, revision: int) -> Mapping[str, bytes]:
        """The state at *revision*."""
        count = bisect_right(self.commits, revision, key=lambda commit: commit.revision)
        known = self._states.get(count)
        if known is None:
            state = dict(self.fold(self.commits[count - 2].revision)) if count > 1 else {}
            if count:
                apply(state, self.commits[count - 1])
            known = self._states[count] = state
        return known

    def at(self, revision: int) -> TruthCommit | None:
        """The commit that made *revision*."""
        if len(self._index) != len(self.commits):
            self._index = {commit.revision: number for number, commit in enumerate(self.commits)}
        number = self._index.get(revision)
        return None if number is None else self.commits[number]

    def after(self, revision: int) -> Sequence[TruthCommit]:
        """The commits above *revision*."""
        return self.commits[bisect_right(self.commits, revision, key=lambda commit: commit.revision) :]


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
        self.epochs: list[Epoch] = [Epoch(0, [])]

    def record(self, revision: int, ops: Iterable[Op1]) -> None:
        """The source applied a transaction."""
        self.epochs[-1].commits.append(TruthCommit(revision, tuple(ops)))

    def rewind(self, base: int) -> None:
        """The source lost everything above *base*."""
        kept = [commit for commit in self.epochs[-1].commits if commit.revision <= base]
        self.epochs.append(Epoch(base, kept))

    @property
    def state(self) -> Mapping[str, bytes]:
        """What the source holds now."""
        commits = self.epochs[-1].commits
        return self.epochs[-1].fold(commits[-1].revision if commits else 0)


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


@dataclass
class Watched:
    """The subscription began."""

    time: float
    prefixes: tuple[str, ...]
    in_flight: int


@dataclass
class PutEvent:
    """An event was put on the watcher's queue; *number* counts them."""

    time: float
    number: int


@dataclass
class PutChange(PutEvent):
    changes: list[Seen]


@dataclass
class PutResync(PutEvent):
    reason: ResyncReason
    revision: int
    values: dict[str, dict[str, bytes]]
    removed: list[Gone]


@dataclass
class Answering:
    """``done`` of event *number* is being called, with an error or without."""

    time: float
    number: int
    refused: bool


@dataclass
class Answered:
    """``done`` returned; *first* is what it said."""

    time: float
    number: int
    first: bool


@dataclass
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

    def puts(self) -> list[PutChange | PutResync]:
        """The events."""
        return [entry for entry in self.entries if isinstance(entry, PutEvent)]
