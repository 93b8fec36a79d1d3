"""One reading of a log for all checkers: the prefixes that may apply to each event, given that calls take time.

It uses nothing of the library: the rules under test are written again from the contract.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tests.faults.checkers.debts import replay
from tests.faults.history import (
    Answered,
    Answering,
    Asked,
    Log,
    Op1,
    PutChange,
    PutResync,
    TruthCommit,
    Watched,
)

#: An event may be abandoned a little before or after its time; what happens in between is not judged.
ABANDON_TOLERANCE = 0.5


@dataclass(frozen=True)
class Violation:
    """A violation at entry number *where* of the log; *context* has the entries around it."""

    invariant: str
    watcher: str
    what: str
    where: int
    context: str

    def __str__(self) -> str:
        return f"{self.invariant} violated at {self.watcher}, entry {self.where}: {self.what}\n{self.context}"


class Scope(NamedTuple):
    """The prefixes of a watcher at one moment."""

    #: Prefixes that are registered for certain, and those that may be because a call has not returned.
    must: frozenset[str]
    may: frozenset[str]
    #: Prefixes of the last RESYNC without those that have certainly, or possibly, been unregistered since.
    delivered_may: frozenset[str]
    delivered_must: frozenset[str]
    #: Sets of prefixes that an event may have been filtered with.
    filters: tuple[tuple[str, ...], ...]


class Step(NamedTuple):
    """One entry of the log about prefixes or events, its index, and the prefixes at that moment."""

    at: int
    entry: Watched | Asked | PutChange | PutResync
    scope: Scope


class Reading:
    """A log with what several checkers need; *log* must not change while this is in use."""

    def __init__(self, log: Log, requests: Sequence[float] = ()) -> None:
        self.log = log
        #: Times at which a RESYNC was requested (``Course.requests``).
        self.requests = requests
        self.steps = list(_steps(log))
        #: The answer that settled each event; an event without one is missing: it was given up, or it is open.
        self._said = _said(log)
        self.answers = _settling(log, self._said)
        #: What each redelivery had to be; the keys that are owed at the end, and how many were at once.
        self.redelivered, self.owed, self.most_owed = replay(log, self.answers, self._said)
        #: Numbers of the RESYNCs.
        self.resyncs = {entry.number for entry in log.entries if isinstance(entry, PutResync)}
        #: True when its owner closed the subscription before the end.
        self.closed = any(isinstance(step.entry, Asked) and step.entry.what == "close" for step in self.steps)

    def accepted(self, number: int) -> bool:
        """True when the event was answered, and all of it was accepted."""
        answer = self.answers.get(number)
        return answer is not None and not answer.refused

    def told(self, number: int, key: str) -> bool:
        """True when *key* of the event was accepted, if only after the event had been given up."""
        return number in self._said and not self._said[number].refuses(key)

    def violation(self, invariant: str, at: int, what: str) -> Violation:
        """The violation *what* at entry *at*, with the entries around it."""
        entries = self.log.entries
        around = range(max(0, at - 6), min(len(entries), at + 3))
        lines = [f"{'->' if n == at else '  '} {n}: {_line(entries[n])}" for n in around]
        return Violation(invariant, self.log.name, what, at, "\n".join(lines))

    @property
    def last(self) -> int:
        """The index of the last entry."""
        return len(self.log.entries) - 1


def course_violation(invariant: str, what: str, *around: object) -> Violation:
    """The violation *what* of the whole cell; *around* is its evidence."""
    lines = [f"-> {around[0]!r}", *(f"   {one!r}" for one in around[1:])] if around else []
    return Violation(invariant, "the course", what, 0, "\n".join(lines))


def longest(key: str, prefixes: Iterable[str]) -> str | None:
    """The longest of *prefixes* of *key*."""
    return max((prefix for prefix in prefixes if key.startswith(prefix)), key=len, default=None)


def under(state: Mapping[str, bytes], prefixes: Collection[str]) -> Mapping[str, bytes]:
    """The part of *state* under *prefixes*."""
    if "" in prefixes:
        return state
    names = tuple(prefixes)
    return {key: value for key, value in state.items() if key.startswith(names)}


def wanted(commit: TruthCommit, prefixes: tuple[str, ...]) -> Sequence[Op1]:
    """The operations of *commit* under *prefixes*."""
    return [op for op in commit.ops if op[0].startswith(prefixes)]


def shown(entry: PutResync) -> dict[str, bytes]:
    """All pairs of a RESYNC."""
    return {key: value for pairs in entry.values.values() for key, value in pairs.items()}


def _steps(log: Log) -> Iterable[Step]:
    must: set[str] = set()
    may: set[str] = set()
    delivered_may: set[str] = set()
    delivered_must: set[str] = set()
    leaving: set[str] = set()  # their unregister call has not returned
    scope = _scope(must, may, delivered_may, delivered_must)
    for at, entry in enumerate(log.entries):
        if isinstance(entry, PutChange):  # most entries are, and they change no prefixes
            yield Step(at, entry, scope)
            continue
        if isinstance(entry, (Answering, Answered)):
            continue
        if isinstance(entry, Watched):
            must, may = set(entry.prefixes), set(entry.prefixes)
            if not log.sourced:  # a prefix without keys needs no RESYNC
                delivered_may, delivered_must = set(entry.prefixes), set(entry.prefixes)
        elif isinstance(entry, Asked):
            if entry.what == "register":
                (must if entry.over else may).add(entry.prefix)
            elif entry.what == "unregister":
                if entry.over:
                    leaving.discard(entry.prefix)
                    may.discard(entry.prefix)
                    delivered_may.discard(entry.prefix)
                else:
                    leaving.add(entry.prefix)
                    must.discard(entry.prefix)
                    delivered_must.discard(entry.prefix)
        else:
            delivered_may = set(entry.values)
            # Also one whose register call has not returned: its changes follow the RESYNC that includes it.
            delivered_must = delivered_may - leaving
        scope = _scope(must, may, delivered_may, delivered_must)
        yield Step(at, entry, scope)


def _scope(must: set[str], may: set[str], delivered_may: set[str], delivered_must: set[str]) -> Scope:
    surely, perhaps = tuple(delivered_must), tuple(delivered_may)
    filters = (surely,) if delivered_may == delivered_must else (perhaps, surely)
    return Scope(frozenset(must), frozenset(may), frozenset(delivered_may), frozenset(delivered_must), filters)


def _said(log: Log) -> dict[int, Answering]:
    """The first answer to each event, maybe a late one. Whoever answers twice says the same."""
    said: dict[int, Answering] = {}
    for entry in log.entries:
        if isinstance(entry, Answering):
            said.setdefault(entry.number, entry)
    return said


def _settling(log: Log, said: Mapping[int, Answering]) -> dict[int, Answering]:
    """The answer that settled each event."""
    settled = {entry.number for entry in log.entries if isinstance(entry, Answered) and entry.first}
    return {number: answer for number, answer in said.items() if number in settled}


def _line(entry: object) -> str:
    text = repr(entry)
    return text if len(text) < 600 else text[:600] + "…"
