"""Random truths and perfect logs pass every checker; the same logs with one thing altered are caught.

An alteration is made only where it is one for certain: what is as legal as what was there before (to leave out an event
that a RESYNC follows anyway, to merge transactions of different keys) is not tried.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasync.events import Op, ResyncReason
from tests.faults.checkers.honest_client import ABANDON, Honest
from tests.faults.checkers.judge import check_all
from tests.faults.checkers.reading import longest, shown, under
from tests.faults.history import Answered, Answering, Asked, Gone, Log, Op1, PutChange, PutResync, Truth

KEYS = ["a", "a/1", "a/2", "a/b/1", "a/b/2", "b", "b/1", "ba"]
PREFIXES = ["", "a", "a/", "a/b/", "b", "b/", "nothing/"]

#: A seed for everything else: a tenth of the time that drawing each choice takes, and such a log is small anyway.
seeds = st.integers(0, 1 << 32)


class Case(NamedTuple):
    truth: Truth
    log: Log


def random_truth(chance: random.Random, *, lives: int = 1) -> Truth:
    """Up to twelve transactions in each life; no value comes twice."""
    truth = Truth()
    revision = 1
    for life in range(lives):
        if life:
            revision = chance.randint(1, revision)
            truth.rewind(revision)
        for _ in range(chance.randint(1, 12)):
            revision += chance.choice((1, 1, 1, 3))
            ops = []
            for key in chance.sample(KEYS, chance.randint(1, 4)):
                delete = key in truth.state and chance.random() < 0.4
                ops.append(Op1(key, None if delete else b"%d:%d:%s" % (life, revision, key.encode())))
            truth.record(revision, ops)
    return truth


Alteration = Callable[[random.Random, Case], None]


class Driver:
    """Takes an honest client through one life of a truth, to its end."""

    def __init__(self, chance: random.Random, truth: Truth, in_flight: int) -> None:
        self.chance = chance
        self.client = Honest(truth, tuple(chance.sample(PREFIXES, chance.randint(1, 4))), in_flight=in_flight, epoch=0)
        self.in_flight = in_flight
        self.place = 0
        self.alone = False

    def live(self, epoch: int, reason: ResyncReason) -> None:
        """From some revision of *epoch* to its last one."""
        self.client.epoch = epoch
        self.commits = self.client.truth.epochs[epoch].commits
        self.place = self.chance.randint(0, len(self.commits))
        self.client.resync(reason, self.revision, refuse=False)
        while self.place < len(self.commits):
            self.step()
        while self.client.owed:
            self.redeliver()

    @property
    def revision(self) -> int:
        return self.commits[self.place - 1].revision if self.place else 1

    def step(self) -> None:
        dice = self.chance.random()
        client = self.client
        if dice < 0.5:
            client.change(*self.next_commits())
        elif dice < 0.6 and self.in_flight > 1:
            numbers = [client.put(*self.next_commits())]
            following = self.commits[self.place : self.place + 1]
            if following and not {key for key, _ in following[0].ops} & client.last_keys:
                self.place += 1
                numbers.append(client.put(following[0].revision))
            client.answer(*[number for number in numbers if number is not None])
        elif dice < 0.7:
            commits = self.next_commits()
            if self.chance.random() < 0.5:
                client.change(*commits, refuse=True)
            else:
                client.change(*commits, refuse=self.some({key for at in commits for key in self.wanted(at)}))
        elif dice < 0.75:
            if client.owed:
                self.redeliver()
        elif dice < 0.8:
            client.resync(ResyncReason.OVERFLOW, self.revision, refuse=True)
            client.clock += 2
            self.skip()
            names = tuple(client.prefixes)
            there = [key for key in client.truth.epochs[client.epoch].fold(self.revision) if key.startswith(names)]
            client.resync(ResyncReason.FAILED, self.revision, refuse=self.some(there))
        elif dice < 0.85:
            self.skip()
            client.resync(ResyncReason.OVERFLOW, self.revision)
        elif dice < 0.9 and len(client.prefixes) > 1:
            client.unregister(self.chance.choice(client.prefixes))
        else:
            fresh = [prefix for prefix in PREFIXES if prefix not in client.prefixes]
            if fresh:
                client.register(self.chance.choice(fresh))
                client.resync(ResyncReason.PREFIX, self.revision)

    def redeliver(self) -> None:
        """Some of what is owed, after any pause of these few failures; one key may be alone from then on."""
        self.client.clock += 100_000
        owed = sorted(self.client.owed)
        refuse = self.chance.choice((False, False, True, owed[:1]))
        self.client.redeliver(*(owed[:1] if self.chance.random() < 0.8 or self.alone else owed), refuse=refuse)
        self.alone = self.alone or refuse is True

    def some(self, keys: Iterable[str]) -> list[str]:
        return [key for key in sorted(keys) if self.chance.random() < 0.5]

    def wanted(self, revision: int) -> list[str]:
        """The keys of the commit at *revision* that the client is told of."""
        place = self.client.truth.epochs[self.client.epoch].at(revision)
        assert place is not None
        return [key for key, _ in self.commits[place].ops if self.client.watches(key)]

    def skip(self) -> None:
        self.place = self.chance.randint(self.place, len(self.commits))

    def next_commits(self) -> list[int]:
        """The next transaction, or several that have no key in common."""
        keys: set[str] = set()
        revisions: list[int] = []
        for commit in self.commits[self.place : self.place + self.chance.randint(1, 3)]:
            own = {key for key, _ in commit.ops}
            if keys & own:
                break
            keys |= own
            revisions.append(commit.revision)
        self.place += len(revisions)
        return revisions


def perfect(chance: random.Random) -> Case:
    """A log without fault of a truth with one life, or with a few."""
    lives = chance.choice((1, 1, 2, 3))
    truth = random_truth(chance, lives=lives)
    driver = Driver(chance, truth, chance.choice((1, 2)))
    first = chance.randrange(lives)
    for epoch in range(first, lives):
        driver.live(epoch, ResyncReason.INITIAL if epoch == first else ResyncReason.REWOUND)
    driver.client.log.end += 1
    return Case(truth, driver.client.log)


def said(case: Case) -> list[str]:
    return [str(found) for found in check_all(case.truth, case.log)]


@given(seeds)
def test_a_perfect_log_passes(seed: int) -> None:
    case = perfect(random.Random(seed))
    assert said(case) == []


# Alterations. Each takes the events that it can be applied to for certain, and alters one of them.


def changes(case: Case) -> list[PutChange]:
    return [put for put in case.log.puts() if isinstance(put, PutChange) and not put.redelivery]


def redeliveries(case: Case) -> list[PutChange]:
    return [put for put in case.log.puts() if isinstance(put, PutChange) and put.redelivery]


def resyncs(case: Case) -> list[PutResync]:
    return [put for put in case.log.puts() if isinstance(put, PutResync)]


class DoesNotApply(Exception):
    """The log has no place for the alteration."""


def need(condition: object) -> None:
    if not condition:
        raise DoesNotApply


def pick(chance: random.Random, found: list[Any]) -> Any:
    need(found)
    return chance.choice(found)


def followed(case: Case, put: PutChange) -> PutChange | None:
    """The event after *put* when it is a CHANGE and nobody changed his prefixes in between."""
    entries = case.log.entries
    for entry in entries[entries.index(put) + 1 :]:
        if isinstance(entry, (PutResync, Asked)):
            return None
        if isinstance(entry, PutChange):
            return None if entry.redelivery else entry
    return None


def last_of_all(case: Case, put: PutChange) -> bool:
    entries = case.log.entries
    return not any(isinstance(entry, (PutResync, PutChange, Asked)) for entry in entries[entries.index(put) + 1 :])


def remove(case: Case, number: int) -> None:
    case.log.entries = [entry for entry in case.log.entries if getattr(entry, "number", None) != number]


def drops_an_event(chance: random.Random, case: Case) -> None:
    needed = [put for put in changes(case) if followed(case, put) is not None or last_of_all(case, put)]
    remove(case, pick(chance, needed).number)


def drops_a_change(chance: random.Random, case: Case) -> None:
    need(len(case.truth.epochs) == 1)  # else what is left may be a transaction of another life
    put = pick(chance, [put for put in changes(case) if len(put.changes) > 1])
    # of a transaction that comes all the same: else it may be that its prefix was gone by then
    change = pick(chance, [c for c in put.changes if sum(o.revision == c.revision for o in put.changes) > 1])
    put.changes.remove(change)


def repeats_an_event(chance: random.Random, case: Case) -> None:
    put = pick(chance, changes(case))
    own = [entry for entry in case.log.entries if getattr(entry, "number", None) == put.number]
    again = copy.deepcopy(own)
    for entry in again:
        entry.number = 1000  # type: ignore[union-attr]
    at = case.log.entries.index(own[-1]) + 1
    case.log.entries[at:at] = again


def swaps_two_events(chance: random.Random, case: Case) -> None:
    put = pick(chance, [put for put in changes(case) if followed(case, put) is not None])
    after = followed(case, put)
    assert after is not None
    put.changes, after.changes = after.changes, put.changes


def alters_a_value(chance: random.Random, case: Case) -> None:
    put = pick(chance, changes(case))
    alter(chance, put, value=b"never written", op=Op.PUT)


def alters_a_previous_value(chance: random.Random, case: Case) -> None:
    alter(chance, pick(chance, changes(case)), previous=b"never written")


def forgets_a_previous_value(chance: random.Random, case: Case) -> None:
    put = pick(chance, [put for put in changes(case) if any(change.previous is not None for change in put.changes)])
    at = pick(chance, [n for n, change in enumerate(put.changes) if change.previous is not None])
    put.changes[at] = put.changes[at]._replace(previous=None)


def alters_a_revision(chance: random.Random, case: Case) -> None:
    known = {commit.revision for epoch in case.truth.epochs for commit in epoch.commits}
    put = pick(chance, changes(case))
    at = chance.randrange(len(put.changes))
    revision = put.changes[at].revision + chance.choice((-2, -1, 1, 2))
    need(revision not in known)
    put.changes[at] = put.changes[at]._replace(revision=revision)


def turns_a_put_into_a_delete(chance: random.Random, case: Case) -> None:
    put = pick(chance, [put for put in changes(case) if any(change.op is Op.PUT for change in put.changes)])
    at = pick(chance, [n for n, change in enumerate(put.changes) if change.op is Op.PUT])
    put.changes[at] = put.changes[at]._replace(op=Op.DELETE, value=None)


def splits_a_transaction(chance: random.Random, case: Case) -> None:
    splittable = [
        (put, at)
        for put in changes(case)
        for at in range(1, len(put.changes))
        if put.changes[at - 1].revision == put.changes[at].revision
    ]
    put, at = pick(chance, splittable)
    rest = PutChange(put.time + 0.05, 1000, put.changes[at:])
    put.changes = put.changes[:at]
    end = max(n for n, entry in enumerate(case.log.entries) if getattr(entry, "number", None) == put.number) + 1
    case.log.entries[end:end] = [rest, Answering(rest.time, 1000, False), Answered(rest.time, 1000, True)]


def merges_what_has_a_key_in_common(chance: random.Random, case: Case) -> None:
    pairs = [(put, after) for put in changes(case) if (after := followed(case, put)) is not None]
    common = [(a, b) for a, b in pairs if {c.key for c in a.changes} & {c.key for c in b.changes}]
    put, after = pick(chance, common)
    put.changes += after.changes
    remove(case, after.number)


def merges_what_two_callers_sent(chance: random.Random, case: Case) -> None:
    case.log.sourced = False
    put = pick(chance, [put for put in changes(case) if len({change.revision for change in put.changes}) == 1])
    after = followed(case, put)
    need(after is not None)
    assert after is not None
    put.changes += after.changes
    remove(case, after.number)


def leaks_a_foreign_key(chance: random.Random, case: Case) -> None:
    put = pick(chance, changes(case))
    put.changes.append(put.changes[-1]._replace(key="~foreign", op=Op.PUT, value=b"never written"))


def does_not_tell_what_is_gone(chance: random.Random, case: Case) -> None:
    put = pick(chance, [put for put in resyncs(case) if put.removed])
    put.removed.remove(chance.choice(put.removed))


def tells_that_what_is_there_is_gone(chance: random.Random, case: Case) -> None:
    put = pick(chance, [put for put in resyncs(case) if shown(put)])
    key, value = chance.choice(list(shown(put).items()))
    put.removed.append(Gone(key, value, put.revision))


def forgets_a_key_in_a_resync(chance: random.Random, case: Case) -> None:
    put = pick(chance, [put for put in resyncs(case) if shown(put)])
    prefix = pick(chance, [prefix for prefix, pairs in put.values.items() if pairs])
    del put.values[prefix][chance.choice(list(put.values[prefix]))]
    need(shown(put) not in states_of(case, put))  # else it is the truth of another life


def alters_a_value_in_a_resync(chance: random.Random, case: Case) -> None:
    put = pick(chance, [put for put in resyncs(case) if shown(put)])
    prefix = pick(chance, [prefix for prefix, pairs in put.values.items() if pairs])
    put.values[prefix][chance.choice(list(put.values[prefix]))] = b"never written"


def shows_another_state(chance: random.Random, case: Case) -> None:
    put = pick(chance, resyncs(case))
    epoch = chance.choice(case.truth.epochs)
    other = under(epoch.fold(chance.choice(epoch.commits).revision), put.values)
    need(other not in states_of(case, put))
    put.values = {
        prefix: {key: value for key, value in other.items() if longest(key, put.values) == prefix}
        for prefix in put.values
    }


def states_of(case: Case, put: PutResync) -> list[Any]:
    """What may stand in *put*: the states of all lives at its revision."""
    return [under(epoch.fold(put.revision), put.values) for epoch in case.truth.epochs]


def overlooks_a_prefix(chance: random.Random, case: Case) -> None:
    first = case.log.puts()[0]
    assert isinstance(first, PutResync)
    del first.values[chance.choice(list(first.values))]


def sorts_a_key_wrongly(chance: random.Random, case: Case) -> None:
    put = pick(chance, [put for put in resyncs(case) if shown(put) and len(put.values) > 1])
    prefix = pick(chance, [prefix for prefix, pairs in put.values.items() if pairs])
    key = chance.choice(list(put.values[prefix]))
    other = chance.choice([name for name in put.values if name != prefix])
    put.values[other][key] = put.values[prefix].pop(key)


def invents_a_rewind(chance: random.Random, case: Case) -> None:
    need(len(case.truth.epochs) == 1)
    pick(chance, resyncs(case)).reason = ResyncReason.REWOUND


def puts_before_the_last_one_was_answered(chance: random.Random, case: Case) -> None:
    puts = case.log.puts()
    entries = case.log.entries
    if entries[0].in_flight == 1:  # type: ignore[union-attr]
        pairs = list(pairwise(puts))
    else:  # then only a RESYNC is alone
        pairs = [(a, b) for a, b in pairwise(puts) if isinstance(b, PutResync)]
    first, second = pick(chance, [(a, b) for a, b in pairs if b.time - a.time < ABANDON / 2])
    entries.remove(second)
    entries.insert(entries.index(first) + 1, second)


def redelivers_another_value(chance: random.Random, case: Case) -> None:
    alter(chance, pick(chance, redeliveries(case)), value=b"never written", op=Op.PUT)


def redelivers_with_another_previous_value(chance: random.Random, case: Case) -> None:
    alter(chance, pick(chance, redeliveries(case)), previous=b"never written")


def redelivers_too_early(chance: random.Random, case: Case) -> None:
    put = pick(chance, redeliveries(case))
    entries = case.log.entries
    own = entries.index(put)
    before = max(entry.time for entry in entries[:own])
    for entry in entries[own:]:
        entry.time -= put.time - before
    put.time = min(put.time, before)
    key = put.changes[0].key
    told = {one.number for one in changes(case) + redeliveries(case) if key in {change.key for change in one.changes}}
    failed = [e.time for e in entries[:own] if isinstance(e, Answering) and e.number in told and e.refuses(key)]
    need(failed and before - failed[-1] < 0.9)


def redelivers_what_was_accepted(chance: random.Random, case: Case) -> None:
    put = pick(chance, [put for put in changes(case) if accepted(case, put)])
    again = copy.deepcopy([entry for entry in case.log.entries if getattr(entry, "number", None) == put.number])
    for entry in again:
        entry.number = 1000  # type: ignore[union-attr]
    again[0].redelivery = True  # type: ignore[union-attr]
    at = 1 + max(n for n, entry in enumerate(case.log.entries) if getattr(entry, "number", None) == put.number)
    case.log.entries[at:at] = again


def accepted(case: Case, put: PutChange) -> bool:
    return not any(one.refused for one in case.log.entries if isinstance(one, Answering) and one.number == put.number)


def alter(chance: random.Random, put: PutChange, **fields: object) -> None:
    at = chance.randrange(len(put.changes))
    put.changes[at] = put.changes[at]._replace(**fields)  # type: ignore[arg-type]


ALTERATIONS: list[Alteration] = [
    alters_a_previous_value,
    alters_a_revision,
    alters_a_value,
    alters_a_value_in_a_resync,
    does_not_tell_what_is_gone,
    drops_a_change,
    drops_an_event,
    forgets_a_key_in_a_resync,
    forgets_a_previous_value,
    invents_a_rewind,
    leaks_a_foreign_key,
    merges_what_has_a_key_in_common,
    merges_what_two_callers_sent,
    overlooks_a_prefix,
    puts_before_the_last_one_was_answered,
    redelivers_another_value,
    redelivers_too_early,
    redelivers_what_was_accepted,
    redelivers_with_another_previous_value,
    repeats_an_event,
    shows_another_state,
    sorts_a_key_wrongly,
    splits_a_transaction,
    swaps_two_events,
    tells_that_what_is_there_is_gone,
    turns_a_put_into_a_delete,
]


def altered(alteration: Alteration, chance: random.Random) -> Case:
    """The first of many perfect logs that the alteration applies to: the rarest one applies to every fifth."""
    for _ in range(200):
        case = perfect(chance)
        try:
            alteration(chance, case)
        except DoesNotApply:
            continue
        return case
    raise AssertionError(f"{alteration.__name__} applies to no log")


@pytest.mark.parametrize("alteration", ALTERATIONS, ids=lambda alteration: alteration.__name__)
@given(seed=seeds)
def test_a_log_that_was_altered_is_caught(alteration: Alteration, seed: int) -> None:
    # given a perfect log / when one thing in it is altered
    case = altered(alteration, random.Random(seed))
    # then some checker finds it
    assert said(case) != [], case.log.entries
