"""Waiting against random histories with threads: no wait ends before its time, and each ends (C21).

One thread feeds a registry with commits, bookmarks, listings and rewinds; two threads answer the events of a
subscription, some with a rejection, in any order; others wait meanwhile. A log of what was answered, written before
each answer, tells whether a wait that ended was allowed to.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import Queue
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from datasync.commits import Batch, Commit
from datasync.errors import PropagationError, Rejected, UnknownOutcome
from datasync.events import ResyncReason
from datasync.runtime.timeouts import Timeouts
from datasync.syncbase.registration import Registration
from datasync.syncbase.registry import Registry
from tests.conftest import PATIENT, wait_until

KEYS = ("w/a", "w/b", "w/c", "elsewhere")
#: Rejected keys come back at once, as do failed RESYNCs.
HURRIED = Timeouts(failure_backoff=(0.0005, 0.001))

operations = st.dictionaries(st.sampled_from(KEYS), st.none() | st.just(b'"x"'), min_size=1, max_size=3)
steps = st.one_of(
    st.tuples(st.just("commit"), operations),
    st.tuples(st.just("commit"), operations),
    st.tuples(st.just("bookmark"), st.none()),
    st.tuples(st.just("list"), st.sets(st.sampled_from(KEYS))),
    st.tuples(st.just("rewind"), st.sets(st.sampled_from(KEYS))),
)
answers = st.lists(st.sampled_from(["accept", "accept", "accept", "reject", "fail"]), min_size=1, max_size=12)
waits = st.lists(st.tuples(st.sampled_from(["mirror", "subscriber", "now"]), st.integers(0, 25)), max_size=8)


@dataclass
class History:
    """What was fed to a registry, and what its subscriber has answered."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    rewinds: int = 0
    #: (rewinds, revision) of each commit that changed a key of the subscriber.
    commits: list[tuple[int, int]] = field(default_factory=list)
    #: (rewinds, revision) of each commit, and of each full state, that was answered.
    answered: set[tuple[int, int]] = field(default_factory=set)
    listed: list[tuple[int, int]] = field(default_factory=list)
    rejected: bool = False
    #: A full state was rejected as a whole: a wait ends with that, although changes wait behind it.
    failed: bool = False

    def missing(self, rewinds: int, revision: int) -> list[tuple[int, int]]:
        """The commits up to *revision* that nobody has answered, neither alone nor in a full state."""
        with self.lock:
            covered = max((at for when, at in self.listed if when == rewinds), default=-1)
            return [
                (when, at)
                for when, at in self.commits
                if when == rewinds and covered < at <= revision and (when, at) not in self.answered
            ]


def feed(registry: Registry, history: History, plan: list[tuple[str, Any]]) -> None:
    state: dict[str, bytes] = {}
    revision = 1
    for what, argument in plan:
        revision += 1
        if what == "commit":
            ops = {key: value for key, value in argument.items() if value is not None or key in state}
            state = {key: value for key, value in (state | ops).items() if value is not None}
            with history.lock:
                if any(key.startswith("w/") for key in ops):
                    history.commits.append((history.rewinds, revision))
            registry.feed_changes(Batch(revision, [Commit(revision, list(ops.items()))] if ops else []))
        elif what == "bookmark":
            registry.feed_changes(Batch(revision, ()))
        else:
            state = dict.fromkeys(argument, b'"x"')
            if what == "rewind":
                revision = 1
                with history.lock:
                    history.rewinds += 1
            reason = ResyncReason.REWOUND if what == "rewind" else ResyncReason.COMPACTED
            registry.feed_snapshot(revision, {key: (revision, value) for key, value in state.items()}, reason)


def answer(events: Queue[Any], history: History, plan: list[str]) -> None:
    """Answer by *plan*, and then accept everything, until None comes."""
    number = 0
    while (event := events.get()) is not None:
        how = plan[number] if number < len(plan) else "accept"
        number += 1
        resync = hasattr(event, "get_values")
        keys = [pair.key for pairs in event.get_values().values() for pair in pairs] if resync else []
        keys = keys or ([] if resync else [change.key for change in event.get_changes()])
        error: BaseException | None = None
        if how == "reject" and keys:
            error = Rejected({keys[0]: "no"})
        elif how == "fail":
            error = ValueError("no")
        with history.lock:
            history.rejected = history.rejected or error is not None
            history.failed = history.failed or (resync and how == "fail")
            if resync:
                history.listed.append((history.rewinds, event.revision))
            elif not event.redelivery:
                history.answered.update((history.rewinds, change.revision) for change in event.get_changes())
        event.done(error)


@given(
    plan=st.lists(steps, min_size=1, max_size=25),
    replies=st.tuples(answers, answers),
    asked=waits,
    in_flight=st.integers(1, 3),
    rewinding=st.booleans(),
)
@settings(max_examples=60)
def test_c21_no_wait_ends_too_early_and_each_one_ends(
    plan: list[tuple[str, Any]],
    replies: tuple[list[str], list[str]],
    asked: list[tuple[str, int]],
    in_flight: int,
    rewinding: bool,
) -> None:
    plan = plan if rewinding else [step for step in plan if step[0] != "rewind"]
    history, events = History(), Queue[Any]()
    with Registry("store", sourced=True, timeouts=HURRIED) as registry, ThreadPoolExecutor(12) as threads:
        registry.feed_snapshot(1, {}, ResyncReason.INITIAL)
        registration = registry.watch("w", events, events, "w/", in_flight=in_flight)
        # given those who answer and those who wait
        answering = [threads.submit(answer, events, history, reply) for reply in replies]

        def wait(kind: str, revision: int) -> None:
            """Wait, and raise ``AssertionError`` if that ended too early."""
            before = history.rewinds
            at = registry.position
            try:
                if kind == "mirror":
                    registry.wait_for(revision, PATIENT)
                    assert registry.position >= (before, revision)
                    return
                registration.wait_synced(None if kind == "now" else revision, PATIENT)
            except UnknownOutcome:
                assert rewinding
                assert kind != "now"
                return
            except PropagationError:
                assert history.rejected
                if history.failed:
                    return
            if history.rewinds == before == at.rewinds:  # otherwise the revisions do not tell what came first
                wanted = at.revision if kind == "now" else revision
                missing = history.missing(before, wanted)
                assert history.rewinds != before or not missing, f"{kind} {wanted}: {missing} is not answered"

        try:
            waiting: list[Future[None]] = [threads.submit(wait, kind, revision) for kind, revision in asked]
            # when the history happens, up to a revision that everybody has waited for
            feed(registry, history, plan)
            registry.feed_changes(Batch(100, ()))
            # then each wait ends, and did not end too early
            for one in waiting:
                one.result(PATIENT)
            # and in the end everything is accepted
            wait_until(lambda: is_accepted(registration), "nothing is owed any more")
            assert not history.missing(history.rewinds, 100)
            assert not registry._core.waiters.waiting
        finally:
            for _ in answering:
                events.put(None)
        for done in answering:
            done.result(PATIENT)


def is_accepted(registration: Registration) -> bool:
    try:
        registration.wait_synced(100, PATIENT)
    except PropagationError:
        return False
    return True
