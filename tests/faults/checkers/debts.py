"""The keys that are owed to one watcher, followed through its log: what each redelivery had to be.

A log does not tell when an event was given up, nor in which order the library took things that happened at once. Where
it leaves room for two readings, both pass: a debt is kept until it has ended for certain.

Source: contract C10.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from tests.faults.history import Answered, Answering, Asked, Log, PutChange, PutResync, Seen, Watched

LONG_AGO = -math.inf


@dataclass(frozen=True)
class Debt:
    """A key that was not accepted."""

    #: Time from which the pause before its redelivery runs, and the failures since its value changed.
    begin: float
    failures: int
    #: Number of the newest event that was not accepted: only a later one ends the debt.
    since: int
    #: True when a redelivery of it, and of others, was refused as a whole: from then on it comes alone.
    alone: bool = False
    #: False for one that may be over, or may never have been.
    certain: bool = True
    #: Seconds until its redelivery, where the answer asked for them.
    after: float | None = None
    #: Number of the event that may be the last of it: made before it was over and put after. None: it goes on.
    last: int | None = None


class Told(NamedTuple):
    """What was told of a key last; *exactly* is False when a RESYNC told it, whose revision is not the key's."""

    value: bytes | None
    revision: int
    exactly: bool


class Redelivered(NamedTuple):
    """One key of a redelivery, and what the log says of it up to there."""

    at: int
    entry: PutChange
    change: Seen
    told: Told
    #: Values of which one is what the watcher accepted last.
    accepted: frozenset[bytes | None]
    #: None when the key is not owed.
    debt: Debt | None


def replay(
    log: Log, answers: Mapping[int, Answering], said: Mapping[int, Answering]
) -> tuple[list[Redelivered], dict[str, Debt], int]:
    """Follow *log*: its redeliveries, the keys that are owed at its end, and how many were at once.

    Args:
      answers: The answers that settled events.
      said: The first answer to each event, also where that came too late.
    """
    debts = _Debts(log, answers, said)
    return list(debts.follow()), debts.owed, debts.most


class _Debts:
    def __init__(self, log: Log, answers: Mapping[int, Answering], said: Mapping[int, Answering]) -> None:
        self._log = log
        self._said = said
        self._answers = answers
        self.owed: dict[str, Debt] = {}
        self.most = 0
        self._told: dict[str, Told] = {}
        self._resynced = 0  # revision of the last RESYNC
        self._accepted: dict[str, frozenset[bytes | None]] = {}  # a key that is missing: nothing was accepted
        self._open: dict[int, PutChange | PutResync] = {}
        self._given_up: dict[int, PutChange] = {}
        self._newest: dict[str, int] = {}  # the event that brought each key last
        self._newest_resync = self._last = -1
        self._prefixes: set[str] = set()

    def follow(self) -> Iterator[Redelivered]:
        for at, entry in enumerate(self._log.entries):
            if isinstance(entry, PutChange):
                self._give_up(entry.time)
                if entry.redelivery:
                    yield from [self._redelivered(at, entry, change) for change in entry.changes]
                self._put(entry)
                for change in entry.changes:
                    self._doubt(change.key, entry)
                    self._told[change.key] = Told(change.value, change.revision, True)
                    self._newest[change.key] = entry.number
            elif isinstance(entry, PutResync):
                self._give_up(entry.time)
                self._put(entry)
                self._resynced, self._newest_resync = entry.revision, entry.number
                self._told = {key: Told(value, entry.revision, False) for key, value in _pairs(entry).items()}
            elif isinstance(entry, Answering):
                if self._answers.get(entry.number) is entry:
                    self._settle(entry)
                elif entry.number not in self._answers:
                    self._give_up(math.inf, entry.number)
                    self._answer_late(entry)
            elif isinstance(entry, Answered):
                self._answered_late(entry)
            elif isinstance(entry, Watched):
                self._prefixes = set(entry.prefixes)
            else:
                self._ask(entry)

    def _redelivered(self, at: int, entry: PutChange, change: Seen) -> Redelivered:
        told = self._told.get(change.key, Told(None, self._resynced, False))
        accepted = self._accepted.get(change.key, frozenset((None,)))
        debt = self.owed.get(change.key)
        return Redelivered(at, entry, change, told, accepted, None if _is_over(debt, entry) else debt)

    def _put(self, entry: PutChange | PutResync) -> None:
        self._last = entry.number
        self._open[entry.number] = entry

    def _doubt(self, key: str, entry: PutChange) -> None:
        """A debt that a late answer ended goes on if *entry* was put before that answer: its key comes once more."""
        debt = self.owed.get(key)
        if debt is not None and debt.last is not None and not _is_over(debt, entry):
            self.owed[key] = replace(debt, since=max(debt.since, entry.number), certain=False, last=None)

    # Answers that settle.

    def _settle(self, answer: Answering) -> None:
        entry = self._open.pop(answer.number, None)
        if isinstance(entry, PutChange):
            for change in entry.changes:
                if answer.refuses(change.key):
                    self._fail(
                        entry, change.key, answer.time, whole=answer.keys is None, after=answer.after.get(change.key)
                    )
                else:
                    self._accept(change.key, change.value, entry.number)
        elif isinstance(entry, PutResync) and (answer.keys is not None or not answer.refused):
            self._settle_resync(entry, answer)

    def _settle_resync(self, entry: PutResync, answer: Answering) -> None:
        """It speaks for every key, there or not."""
        there = _pairs(entry)
        self._accepted = {key: frozenset((value,)) for key, value in there.items()}
        self.owed = {key: d for key, d in self.owed.items() if d.since >= entry.number or answer.refuses(key)}
        for key in answer.keys or ():
            before = self.owed.get(key)
            failures = 1 if before is None else before.failures + 1
            self.owed[key] = Debt(answer.time, failures, entry.number, after=answer.after.get(key))
            self._accepted[key] = frozenset((None,))
        self.most = max(self.most, len(self.owed))

    def _fail(
        self,
        entry: PutChange,
        key: str,
        time: float,
        *,
        whole: bool,
        given_up: bool = False,
        after: float | None = None,
    ) -> None:
        before = self.owed.get(key)
        if not entry.redelivery and not self._log.sourced:
            return  # its caller was told
        failures = before.failures + 1 if before is not None and entry.redelivery else 1
        alone = entry.redelivery and (whole or (before is not None and before.alone))
        since = entry.number - given_up  # its own late answer may still end the debt
        since = since if before is None else max(before.since, since)
        self.owed[key] = Debt(time, failures, since, alone, after=after)
        self.most = max(self.most, len(self.owed))

    def _accept(self, key: str, value: bytes | None, number: int) -> None:
        self._accepted[key] = frozenset((value,))
        debt = self.owed.get(key)
        if debt is not None and number > debt.since:
            del self.owed[key]

    # No answer, or a late one.

    def _give_up(self, now: float, number: int | None = None) -> None:
        """Note the events that had no answer in time: those before *now*, or event *number*."""
        for one in list(self._open) if number is None else [number]:
            entry = self._open.get(one)
            if entry is None or one in self._answers or entry.time + self._log.abandon > now + 1e-6:
                continue
            del self._open[one]
            if isinstance(entry, PutChange):
                self._given_up[one] = entry
                for change in entry.changes:
                    self._fail(entry, change.key, entry.time + self._log.abandon, whole=True, given_up=True)

    def _answer_late(self, answer: Answering) -> None:
        """From now on, and until this is over, both may be so."""
        entry = self._given_up.get(answer.number)
        for change in () if entry is None else entry.changes:
            key = change.key
            debt = self.owed.get(key, Debt(answer.time, 1, self._last))
            newer = self._newer(key, answer.number)
            since = max(debt.since, newer) if newer > answer.number else debt.since
            self.owed[key] = replace(debt, since=since, certain=False)
            if not answer.refuses(key):
                self._accepted[key] = self._accepted.get(key, frozenset((None,))) | {change.value}

    def _answered_late(self, answered: Answered) -> None:
        entry = self._given_up.pop(answered.number, None)
        if entry is None:
            return
        answer = self._said[answered.number]
        made = self._last + 1  # one event at a time is made and not put yet, and the library knows of it
        for change in entry.changes:
            key, debt = change.key, self.owed.get(change.key)
            if self._newer(key, entry.number) > entry.number:
                if debt is not None:  # maybe handled after the newer one: it comes again
                    self.owed[key] = replace(debt, since=max(debt.since, made), certain=False)
            elif not answer.refuses(key) and (debt is None or debt.since < entry.number):
                if debt is not None:
                    self.owed[key] = replace(debt, certain=False, last=made)
            elif not answer.refuses(key):
                continue  # an older event was answered even later: it comes again
            elif debt is not None:
                self.owed[key] = replace(debt, certain=True)

    def _newer(self, key: str, number: int) -> int:
        """The newest event that speaks for *key*."""
        return max(self._newest.get(key, number), self._newest_resync)

    # Prefixes.

    def _ask(self, entry: Asked) -> None:
        if entry.what == "register":
            self._prefixes.add(entry.prefix)
        elif entry.what == "unregister":
            self._prefixes.discard(entry.prefix)
            for key, debt in self.owed.items():
                if not key.startswith(tuple(self._prefixes)):  # it is over, or will be; what fails later begins anew
                    self.owed[key] = replace(debt, begin=LONG_AGO, failures=0, alone=False, certain=False)


def _is_over(debt: Debt | None, entry: PutChange) -> bool:
    """True if *entry* cannot be about *debt* any more."""
    return debt is None or (debt.last is not None and entry.number > debt.last)


def _pairs(entry: PutResync) -> dict[str, bytes]:
    return {key: value for pairs in entry.values.values() for key, value in pairs.items()}
