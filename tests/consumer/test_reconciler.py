"""One call per real difference, key by key."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from google.protobuf.wrappers_pb2 import Int32Value, StringValue

from datasync import KVProtoWatchers, Reconciler, codecs
from datasync.commits import Batch, Commit
from datasync.consumer import Reconcilers, Retry
from datasync.consumer.reconciler.leading import Leading
from datasync.errors import (
    ClosedError,
    DecodeError,
    DoneTimeout,
    InvalidArgumentError,
    Permanent,
    PropagationError,
    Rejected,
    RetryAfter,
    SubscriptionError,
)
from datasync.events import ResyncReason
from datasync.syncbase.change import Change, ChangeBytes
from datasync.syncbase.registry import Registry
from tests.conftest import CANARY, PATIENT, wait_until
from tests.consumer.conftest import Recorder
from tests.support.clock import ManualClock
from tests.support.timing import at_most

Values = dict[str, "bytes | None"]


def snapshot(registry: Registry, revision: int, values: dict[str, bytes]) -> None:
    entries = {key: (revision, value) for key, value in values.items()}
    registry.feed_snapshot(revision, entries, ResyncReason.COMPACTED)


def commit(registry: Registry, revision: int, values: Values) -> None:
    registry.feed_changes(Batch(revision, [Commit(revision, list(values.items()))]))


def put(registry: Registry, key: str, value: bytes) -> None:
    registry.propagate_changes({key: ChangeBytes(key, value)}, timeout=PATIENT)


def fail(error: BaseException) -> Callable[[], Any]:
    def act() -> Any:
        raise error

    return act


def answered(registry: Registry, name: str) -> bool:
    """Whether every event of the subscription was acknowledged."""
    status = registry.status().subscriptions[name]
    return not status.pending and not status.in_flight


def accepted(registry: Registry, events: int) -> bool:
    """Whether the subscriber ``r`` has accepted so many events."""
    return registry.status().subscriptions["r"].ok == events


def test_c20_each_real_difference_is_one_call_resyncs_included(source: Registry, apply: Recorder) -> None:
    with Reconciler(source, "r", "k/", apply=apply) as reconciler:
        # given a first state
        snapshot(source, 1, {"k/a": b"1", "k/b": b"2", "other": b"3"})
        reconciler.wait_synced(PATIENT)
        assert sorted(apply.calls, key=str) == [("k/a", 1, None), ("k/b", 2, None)]
        apply.calls.clear()
        # when a RESYNC brings the same, one difference and one missed delete
        snapshot(source, 2, {"k/a": b"1", "k/c": b"3"})
        wait_until(lambda: len(apply.calls) >= 2, "both were called")
        reconciler.wait_synced(PATIENT)
        assert sorted(apply.calls, key=str) == [("k/b", None, 2), ("k/c", 3, None)]
        apply.calls.clear()
        # and changes come, one of them the same value again
        commit(source, 3, {"k/a": b"5", "k/c": b"3"})
        commit(source, 4, {"k/a": None})
        assert apply.wait(2) == [("k/a", 5, 1), ("k/a", None, 5)]
        reconciler.wait_synced(PATIENT)
        assert len(apply.calls) == 2


def test_c11_without_a_prefix_everything_is_applied_resyncs_included(source: Registry, apply: Recorder) -> None:
    with Reconciler(source, "r", apply=apply) as reconciler:
        snapshot(source, 1, {"k/a": b"1"})
        reconciler.wait_synced(PATIENT)
        commit(source, 2, {"b": b"2"})
        wait_until(lambda: len(apply.calls) >= 2, "the change was called")
    assert apply.calls == [("k/a", 1, None), ("b", 2, None)]


def test_c20_a_caller_is_told_of_the_rejected_key_and_the_others_are_applied(local: Registry, apply: Recorder) -> None:
    # given a key that fails
    apply.on["k/bad"] = fail(ValueError("no such disk"))
    with Reconciler(local, "r", "k/", apply=apply) as reconciler:
        # when a caller changes it with another
        changes = {key: ChangeBytes(key, b"1") for key in ("k/a", "k/bad")}
        with pytest.raises(PropagationError) as failed:
            local.propagate_changes(changes, timeout=PATIENT)
        # then it is told, of that key alone, and after the calls
        assert failed.value.reasons == {"r": {"k/bad": "ValueError: no such disk"}}
        assert sorted(apply.keys()) == ["k/a", "k/bad"]
        assert list(reconciler.problems) == ["k/bad"]
        with pytest.raises(Rejected, match="k/bad"):
            reconciler.wait_synced(PATIENT)
        # and a correction is applied at once
        del apply.on["k/bad"]
        put(local, "k/bad", b"2")
        assert apply.calls[-1] == ("k/bad", 2, None)
        assert reconciler.problems == {}


def test_c20_a_failed_key_is_called_again_by_its_backoff_and_no_sooner(
    source: Registry, apply: Recorder, clock: ManualClock
) -> None:
    # given a key that always fails, and the registry that asks for it again each millisecond
    apply.on["k/bad"] = fail(ValueError("no"))
    retry = Retry(first=10, most=40)
    with Reconciler(source, "r", "k/", apply=apply, retry=retry, clock=clock) as reconciler:
        snapshot(source, 1, {})
        commit(source, 2, {"k/bad": b"1"})
        apply.wait(1)
        wait_until(lambda: reconciler.problems, "the failure is noted")

        def attempts_are(count: int) -> bool:
            return reconciler.problems["k/bad"].attempts == count

        for attempts, longest in ((1, 15), (2, 30), (3, 40), (4, 40)):
            wait_until(partial(attempts_are, attempts), "the attempt is counted")
            next_in = reconciler.problems["k/bad"].next_in
            assert next_in is not None
            assert longest / 1.5 <= next_in <= longest
            # when all but a moment of the time has passed / then nothing was called
            clock.advance(next_in - 0.1)
            reconciler.requeue("k/unknown")
            assert len(apply.calls) == attempts
            clock.advance(0.2)
            apply.wait(attempts + 1)
        # when it changes, the backoff begins anew, and the call comes at once
        commit(source, 3, {"k/bad": b"2"})
        apply.wait(6)
        wait_until(lambda: reconciler.problems["k/bad"].attempts == 1, "the backoff began anew")


def test_c20_a_redelivery_is_answered_with_what_is_known_and_makes_no_call(source: Registry, apply: Recorder) -> None:
    # given a key that failed, which the registry asks for after a second, and a retry in an hour
    apply.on["k/bad"] = fail(ValueError("no"))
    with Reconciler(source, "r", "k/", apply=apply, retry=Retry(first=3600, most=3600)) as reconciler:
        snapshot(source, 1, {})
        commit(source, 2, {"k/bad": b"1"})
        wait_until(lambda: source.status().subscriptions["r"].owed.get("k/bad"), "the registry has the mark")
        wait_until(lambda: source.status().subscriptions["r"].owed["k/bad"].attempts > 1, "the registry asked")
        assert len(apply.calls) == 1
        # when a call succeeds / then the registry's mark goes at its next question, without a call
        del apply.on["k/bad"]
        reconciler.requeue("k/bad")
        wait_until(lambda: not source.status().subscriptions["r"].owed, "the mark is gone")
        assert len(apply.calls) == 2


def test_c20_retry_after_and_permanent_say_when(source: Registry, apply: Recorder, clock: ManualClock) -> None:
    apply.on["k/later"] = fail(RetryAfter(500, "backend restarts"))
    apply.on["k/never"] = fail(Permanent("no such kind"))
    apply.on["k/look"] = lambda: RetryAfter(700)
    with Reconciler(source, "r", "k/", apply=apply, clock=clock) as reconciler:
        snapshot(source, 1, {"k/later": b"1", "k/never": b"1", "k/look": b"1"})
        with pytest.raises(Rejected):
            reconciler.wait_synced(PATIENT)
        problems = reconciler.problems
        assert {key: problem.next_in for key, problem in problems.items()} == {"k/later": 500, "k/never": None}
        apply.calls.clear()
        apply.on.clear()
        clock.advance(501)
        assert apply.wait(1) == [("k/later", 1, None)]
        # the return value means: applied, look again
        clock.advance(200)
        assert apply.wait(2)[1] == ("k/look", 1, 1)
        clock.advance(100_000)
        # and the one that is permanent comes with its next value
        commit(source, 2, {"k/never": b"2"})
        assert apply.wait(3)[2] == ("k/never", 2, None)


def test_c20_attempts_end_the_retries(source: Registry, apply: Recorder, clock: ManualClock) -> None:
    apply.on["k/bad"] = fail(ValueError("no"))
    with Reconciler(source, "r", "k/", apply=apply, retry=Retry(1, 2, attempts=2), clock=clock) as reconciler:
        snapshot(source, 1, {"k/bad": b"1"})
        wait_until(lambda: len(apply.calls) == 1 and reconciler.problems, "the first call failed")
        clock.advance(2)
        wait_until(lambda: reconciler.problems["k/bad"].attempts == 2, "the second call failed")
        assert reconciler.problems["k/bad"].next_in is None


def test_c20_a_value_that_cannot_be_decoded_is_a_problem_of_its_key_and_is_not_told(
    source: Registry, apply: Recorder
) -> None:
    with Reconciler(source, "r", "k/", apply=apply) as reconciler:
        snapshot(source, 1, {"k/a": b"1", "k/bad": f"{CANARY} no JSON".encode(), "k/text": b"\xff"})
        with pytest.raises(Rejected):
            reconciler.wait_synced(PATIENT)
        assert apply.calls == [("k/a", 1, None)]
        assert all(isinstance(problem.error, DecodeError) for problem in reconciler.problems.values())
        assert {problem.next_in for problem in reconciler.problems.values()} == {None}
        commit(source, 2, {"k/bad": b"2"})
        apply.wait(2)


def test_c20_a_key_that_failed_is_called_when_its_last_good_value_comes_back(source: Registry, apply: Recorder) -> None:
    # given a key with a good value, and a change that failed maybe half way
    with Reconciler(source, "r", "k/", apply=apply, retry=Retry(3600, 3600)) as reconciler:
        snapshot(source, 1, {"k/a": b"1"})
        reconciler.wait_synced(PATIENT)
        apply.on["k/a"] = fail(ValueError("half way"))
        commit(source, 2, {"k/a": b"2"})
        apply.wait(2)
        # when the good value comes back / then it is applied, though it is what was accepted last
        apply.on.clear()
        commit(source, 3, {"k/a": b"1"})
        assert apply.wait(3)[2] == ("k/a", 1, 1)
        reconciler.wait_synced(PATIENT)


def test_c20_one_key_is_never_in_two_calls_and_the_last_value_wins(source: Registry, apply: Recorder) -> None:
    # given eight workers, few keys, and slow calls
    for key in "abc":
        apply.on[f"k/{key}"] = lambda: time.sleep(0.002)
    with Reconciler(source, "r", "k/", apply=apply, workers=8) as reconciler:
        snapshot(source, 1, {})
        for revision in range(2, 200):
            commit(source, revision, {f"k/{key}": b"%d" % revision for key in "abc"})
            if revision % 50 == 0:
                reconciler.reconcile_all()
        wait_until(lambda: {v for _, v, _ in apply.calls[-9:]} >= {199}, "the last value was applied")
        wait_until(lambda: reconciler.status().synced, "all is applied")
    assert apply.overlaps == []
    last = {key: value for key, value, _ in apply.calls}
    assert last == {"k/a": 199, "k/b": 199, "k/c": 199}
    # and previous is what was applied before, in each call
    before: dict[str, Any] = {}
    for key, value, previous in apply.calls:
        assert previous == before.get(key)
        before[key] = value


def test_c20_a_change_comes_before_the_rest_of_the_first_pass(source: Registry, apply: Recorder) -> None:
    # given a first pass of which the first call waits
    gate = threading.Event()
    keys = {f"k/{number:03}": b"1" for number in range(100)}
    apply.on["k/000"] = lambda: gate.wait(PATIENT)
    with Reconciler(source, "r", "k/", apply=apply) as reconciler:
        snapshot(source, 1, keys)
        apply.wait(1)
        # when a change comes
        wait_until(lambda: answered(source, "r"), "the RESYNC is acknowledged long before it is applied")
        commit(source, 2, {"k/050": b"2", "k/new": b"3"})
        wait_until(lambda: reconciler.status().live == 2, "the changes wait")
        gate.set()
        reconciler.wait_synced(PATIENT)
    # then it is next, with its newest value, and comes once
    assert apply.calls[1:3] == [("k/050", 2, None), ("k/new", 3, None)]
    assert len(apply.calls) == 101


def test_c20_a_saturating_stream_of_changes_does_not_starve_the_pass(source: Registry, apply: Recorder) -> None:
    # given a pass of 100 keys, and each call making the next change
    revision = iter(range(2, 10_000))

    def change() -> None:
        for _ in range(2):
            number = next(revision)
            commit(source, number, {f"k/live{number % 7}": b"%d" % number})

    for number in range(7):
        apply.on[f"k/live{number}"] = change
    with Reconciler(source, "r", "k/", apply=apply):
        snapshot(source, 1, {f"k/{number}": b"1" for number in range(100)})
        commit(source, next(revision), {"k/live0": b"0"})
        wait_until(lambda: len({key for key, _, _ in apply.calls if "live" not in key}) == 100, "the pass ends")
        apply.on.clear()


def test_c9_a_change_that_takes_longer_than_a_caller_waits_is_taken_over(
    local: Registry, apply: Recorder, clock: ManualClock
) -> None:
    # given a call that does not return
    gate = threading.Event()
    apply.on["k/slow"] = lambda: gate.wait(PATIENT) and fail(ValueError("late"))()
    with Reconciler(local, "r", "k/", apply=apply, workers=2, retry=Retry(3600, 3600), clock=clock) as reconciler:
        future = local.submit_changes({"k/slow": ChangeBytes("k/slow", b"1")})
        apply.wait(1)
        # when the time is over / then the change is the reconciler's business, and others come in
        wait_until(lambda: reconciler._open, "the answer waits")
        clock.advance(2.1)
        future.result(PATIENT)
        put(local, "k/a", b"1")
        gate.set()
        wait_until(lambda: list(reconciler.problems) == ["k/slow"], "its failure is a problem")


def test_c20_requeue_calls_without_a_difference_at_once_or_later(
    source: Registry, apply: Recorder, clock: ManualClock
) -> None:
    with Reconciler(source, "r", "k/", apply=apply, clock=clock) as reconciler:
        snapshot(source, 1, {"k/a": b"1", "k/b": b"2"})
        reconciler.wait_synced(PATIENT)
        apply.calls.clear()
        reconciler.requeue("k/a", "k/nobody")
        assert apply.wait(1) == [("k/a", 1, 1)]
        reconciler.requeue("k/b", after=60)
        snapshot(source, 2, {"k/a": b"1", "k/b": b"2"})  # is no reason to call sooner
        wait_until(lambda: source.status().subscriptions["r"].ok == 2, "the RESYNC was taken over")
        reconciler.wait_synced(PATIENT)
        assert len(apply.calls) == 1
        clock.advance(61)
        assert apply.wait(2)[1] == ("k/b", 2, 2)
        reconciler.reconcile_all()
        assert sorted(apply.wait(4)[2:]) == [("k/a", 1, 1), ("k/b", 2, 2)]
        with pytest.raises(InvalidArgumentError):
            reconciler.requeue("k/a", after=-1)


def test_c20_every_calls_all_keys_again_with_jitter(source: Registry, apply: Recorder, clock: ManualClock) -> None:
    with Reconciler(source, "r", "k/", apply=apply, every=600, clock=clock) as reconciler:
        snapshot(source, 1, {"k/a": b"1", "k/b": b"2"})
        reconciler.wait_synced(PATIENT)
        clock.advance(539)
        assert len(apply.calls) == 2
        for count in (4, 6):
            clock.advance(122)
            apply.wait(count)
            reconciler.wait_synced(PATIENT)
            clock.advance(538)


def test_c20_other_keys_have_what_depends_on_them_called_by_old_and_new_value(
    source: Registry, apply: Recorder
) -> None:
    # given hosts that name a certificate, and certificates that name hosts
    depends = {"cert/": lambda key, value: [f"k/{host}" for host in value]}
    with Reconciler(source, "r", "k/", apply=apply, depends=depends) as reconciler:
        snapshot(source, 1, {"k/a": b"1", "k/b": b"2", "k/c": b"3", "cert/x": b'["a", "b"]'})
        reconciler.wait_synced(PATIENT)
        assert sorted(apply.calls) == [("k/a", 1, None), ("k/b", 2, None), ("k/c", 3, None)]
        apply.calls.clear()
        # when the certificate goes from a and b to b and c
        commit(source, 2, {"cert/x": b'["b", "c"]'})
        # then all three are called, and nothing for an unknown host, or for a value that is not one
        assert sorted(apply.wait(3)) == [("k/a", 1, 1), ("k/b", 2, 2), ("k/c", 3, 3)]
        commit(source, 3, {"cert/x": b'["nobody"]'})
        assert sorted(apply.wait(5)[3:]) == [("k/b", 2, 2), ("k/c", 3, 3)]
        commit(source, 4, {"cert/y": b"no JSON", "cert/z": b'["a"]'})
        assert apply.wait(6)[5] == ("k/a", 1, 1)
        # and a RESYNC that lacks one counts as its delete
        snapshot(source, 5, {"k/a": b"1", "k/b": b"2", "k/c": b"3"})
        assert apply.wait(7)[6] == ("k/a", 1, 1)


def test_c20_on_synced_is_called_once_after_the_first_complete_pass(source: Registry, apply: Recorder) -> None:
    # given a pass in which one key fails
    seen: list[int] = []
    apply.on["k/3"] = fail(ValueError("no"))
    with Reconciler(source, "r", "k/", apply=apply, on_synced=lambda: seen.append(len(apply.calls))) as reconciler:
        with pytest.raises(DoneTimeout):
            reconciler.wait_synced(0.01)
        assert seen == []
        snapshot(source, 1, {f"k/{number}": b"1" for number in range(20)})
        wait_until(lambda: seen, "the pass is complete")
        snapshot(source, 2, {"k/1": b"2"})
        wait_until(lambda: len(apply.calls) > 25, "the second pass was made")
    assert seen == [20]


def test_c20_on_synced_is_called_for_an_empty_source(source: Registry, apply: Recorder) -> None:
    synced = threading.Event()
    with Reconciler(source, "r", "k/", apply=apply, on_synced=synced.set):
        snapshot(source, 1, {})
        assert synced.wait(PATIENT)


def test_c20_a_call_beyond_its_deadline_is_named_once_and_goes_on(
    source: Registry, apply: Recorder, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    gate = threading.Event()
    apply.on["k/slow"] = lambda: gate.wait(PATIENT) and None
    with Reconciler(source, "r", "k/", apply=apply, deadline=5, clock=clock) as reconciler:
        snapshot(source, 1, {"k/slow": b"1"})
        apply.wait(1)
        wait_until(lambda: answered(source, "r"), "the RESYNC was taken over")
        with caplog.at_level(logging.WARNING):
            for _ in range(5):
                clock.advance(5)
                wait_until(lambda: "'k/slow' takes longer than 5 s" in caplog.text, "it is named")
        assert caplog.text.count("takes longer") == 1
        gate.set()
        reconciler.wait_synced(PATIENT)
        assert reconciler.problems == {}


class Leader:
    is_leader = False
    token = 0


def test_c20_a_standby_is_warm_and_calls_only_while_it_leads(source: Registry, apply: Recorder) -> None:
    # given a standby that has taken everything over
    leader = Leader()
    with Reconciler(source, "r", "k/", apply=apply, leader=leader) as reconciler:
        snapshot(source, 1, {"k/a": b"1", "k/b": b"2"})
        commit(source, 2, {"k/a": b"3"})
        wait_until(lambda: answered(source, "r"), "changes are acknowledged")
        wait_until(lambda: reconciler.status().waiting == 2, "both keys are ready")
        assert (apply.calls, reconciler.status().leading) == ([], False)
        # when it is elected / then it starts, with the newest values
        leader.is_leader = True
        reconciler.wait_synced(PATIENT)
        assert sorted(apply.calls) == [("k/a", 3, None), ("k/b", 2, None)]
        # when it does not lead for a while / then nothing is called
        leader.is_leader = False
        wait_until(lambda: not reconciler.status().leading, "it noticed")
        commit(source, 3, {"k/a": b"4"})
        wait_until(lambda: reconciler.status().waiting == 1, "the change waits")
        assert len(apply.calls) == 2
        # and after that every key, because another process may have applied something else
        leader.is_leader = True
        assert sorted(apply.wait(4)[2:]) == [("k/a", 4, 3), ("k/b", 2, 2)]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("told_by", ["a token", "a look"])
def test_c20_a_leadership_lost_and_won_within_one_call_is_an_election(
    source: Registry, apply: Recorder, workers: int, told_by: str
) -> None:
    # given a leader in calls that take long
    leader, gate, inside = Leader(), threading.Event(), threading.Semaphore(0)
    leader.is_leader = True
    leader.token = 1

    def stay() -> None:
        inside.release()
        gate.wait(PATIENT)

    with Reconciler(source, "r", "k/", apply=apply, leader=leader, workers=workers) as reconciler:
        snapshot(source, 1, {"k/a": b"1", "k/b": b"2", "k/c": b"3"})
        reconciler.wait_synced(PATIENT)
        apply.calls.clear()
        apply.on["k/a"] = apply.on["k/b"] = stay
        commit(source, 2, {"k/a": b"4", "k/b": b"5"})
        for _ in range(workers):
            assert inside.acquire(timeout=PATIENT)
        # when another process leads meanwhile
        leader.is_leader = False
        if told_by == "a look":
            wait_until(lambda: not reconciler.status().leading, "it noticed")
        else:
            leader.token = 2
        leader.is_leader = True
        gate.set()
        # then every key is called after that, because it may have applied something else
        wait_until(lambda: apply.keys().count("k/c") == 1, "a key without a change is called")
        reconciler.wait_synced(PATIENT)
        assert sorted(apply.keys())[-1] == "k/c"
        assert apply.keys().count("k/a") == 2


@pytest.mark.parametrize("answers", [[True, False], [False, True]])
def test_c20_threads_that_look_at_once_miss_no_loss(answers: list[bool]) -> None:
    # given two threads that ask at once, of which the one that asked first is told last
    first, second = threading.Event(), threading.Event()

    class Slow:
        looks = 0

        @property
        def is_leader(self) -> bool:
            Slow.looks += 1
            if Slow.looks == 2:
                first.set()
                assert second.wait(PATIENT)
                return answers[0]
            return answers[1] if Slow.looks == 3 else True

    leading = Leading(Slow(), "r")
    assert leading.look() == (True, True)
    thread = threading.Thread(target=leading.look, name="the first")
    thread.start()
    assert first.wait(PATIENT)
    leading.look()
    second.set()
    thread.join(PATIENT)
    # when this process leads again / then that is an election
    assert not leading
    assert leading.look() == (True, True)
    assert leading.look() == (True, False)


def test_c20_no_call_begins_after_the_leadership_was_lost(source: Registry, apply: Recorder) -> None:
    leader = Leader()
    leader.is_leader = True

    def lose() -> None:
        leader.is_leader = False

    apply.on["k/3"] = lose
    with Reconciler(source, "r", "k/", apply=apply, leader=leader) as reconciler:
        snapshot(source, 1, {f"k/{number}": b"1" for number in range(10)})
        wait_until(lambda: not reconciler.status().leading, "it noticed")
        assert apply.keys() == ["k/0", "k/1", "k/2", "k/3"]


def test_c20_settle_gathers_changes_and_there_and_back_calls_nobody(
    source: Registry, apply: Recorder, clock: ManualClock
) -> None:
    with Reconciler(source, "r", "k/", apply=apply, settle=(1, 3), clock=clock) as reconciler:
        # given a first state, which does not wait
        snapshot(source, 1, {"k/a": b"1"})
        reconciler.wait_synced(PATIENT)
        assert len(apply.calls) == 1
        # when it changes there and back
        for revision, value in ((2, b"2"), (3, b"1")):
            commit(source, revision, {"k/a": value})
            wait_until(partial(accepted, source, revision), "the change was taken over")
        clock.advance(5)
        # and then every half second
        for revision in range(4, 10):
            commit(source, revision, {"k/a": b"%d" % revision})
            wait_until(partial(accepted, source, revision), "the change was taken over")
            assert len(apply.calls) == 1
            if revision < 9:
                clock.advance(0.5)
        # then one call brings the last value at the end of the longest time
        with pytest.raises(DoneTimeout):
            reconciler.wait_synced(0.01)
        clock.advance(0.5)
        assert apply.wait(2)[1] == ("k/a", 9, 1)
        reconciler.wait_synced(PATIENT)


@pytest.mark.parametrize(
    ("limit", "held"), [(2, True), (3, False), (0.5, True), (0.6, False), (None, False), (0, True)]
)
def test_c20_a_full_state_that_lacks_too_much_is_held(
    source: Registry, apply: Recorder, limit: Any, held: bool, caplog: pytest.LogCaptureFixture
) -> None:
    # given five keys
    with Reconciler(source, "r", "k/", apply=apply, max_delete=limit) as reconciler:
        snapshot(source, 1, {f"k/{number}": b"1" for number in range(5)})
        reconciler.wait_synced(PATIENT)
        apply.calls.clear()
        # when a RESYNC lacks three and changes one
        snapshot(source, 2, {"k/3": b"2", "k/4": b"1"})
        if not held:
            apply.wait(4)
            return
        assert apply.wait(1) == [("k/3", 2, 1)]
        wait_until(lambda: reconciler.held == ("k/0", "k/1", "k/2"), "the deletes are held")
        wait_until(lambda: "held until release()" in caplog.text, "a WARNING says so")
        # then they are left alone, whatever asks for them
        reconciler.reconcile_all()
        wait_until(lambda: len(apply.calls) >= 3, "the others were called")
        reconciler.wait_synced(PATIENT)
        assert not {"k/0", "k/1", "k/2"} & set(apply.keys())
        # and one that comes back is as before, one that a CHANGE creates and deletes goes
        apply.calls.clear()
        commit(source, 3, {"k/0": b"1"})
        commit(source, 4, {"k/1": b"7"})
        commit(source, 5, {"k/1": None})
        assert apply.wait(2) == [("k/1", 7, 1), ("k/1", None, 7)]
        # and the last goes when it is released
        assert reconciler.release() == ["k/2"]
        assert apply.wait(3)[2] == ("k/2", None, 1)
        assert reconciler.held == ()


def test_c20_close_waits_for_the_call_in_progress_and_makes_no_other(source: Registry, apply: Recorder) -> None:
    gate = threading.Event()
    apply.on["k/0"] = lambda: gate.wait(PATIENT) and None
    reconciler = Reconciler(source, "r", "k/", apply=apply)
    snapshot(source, 1, {f"k/{number}": b"1" for number in range(5)})
    apply.wait(1)
    closing = threading.Thread(target=reconciler.close)
    closing.start()
    wait_until(lambda: "r" not in source.status().subscriptions, "the subscription has ended")
    assert closing.is_alive()
    gate.set()
    closing.join(PATIENT)
    assert apply.keys() == ["k/0"]
    with pytest.raises(ClosedError):
        reconciler.wait_synced(1)
    reconciler.close()


def test_c15_close_waits_for_all_calls_in_progress_together(source: Registry, apply: Recorder) -> None:
    # given more calls than one that do not end
    gate = threading.Event()
    apply.on = dict.fromkeys([f"k/{number}" for number in range(4)], lambda: gate.wait(PATIENT) and None)
    reconciler = Reconciler(source, "r", "k/", apply=apply, workers=4)
    snapshot(source, 1, dict.fromkeys(apply.on, b"1"))
    apply.wait(4)
    # when it is closed / then that takes the timeout once
    began = time.monotonic()
    reconciler.close(1.0)
    assert 1.0 <= time.monotonic() - began < at_most(2.0)
    gate.set()


def test_c20_apply_may_close_and_requeue(source: Registry, apply: Recorder) -> None:
    reconciler = Reconciler(source, "r", "k/", apply=apply)
    apply.on["k/a"] = lambda: reconciler.requeue("k/b")
    apply.on["k/b"] = lambda: reconciler.close()
    snapshot(source, 1, {"k/a": b"1", "k/b": b"1"})
    apply.wait(2)
    reconciler.close()


def test_c20_an_apply_that_wants_to_end_the_thread_fails_its_key_only(source: Registry, apply: Recorder) -> None:
    apply.on["k/a"] = fail(SystemExit(1))
    with Reconciler(source, "r", "k/", apply=apply) as reconciler:
        snapshot(source, 1, {"k/a": b"1", "k/b": b"1"})
        apply.wait(2)
        wait_until(lambda: list(reconciler.problems) == ["k/a"], "it is a problem of its key")


def test_c20_a_group_makes_reconcilers_by_decoration_and_ends_them_together(source: Registry, apply: Recorder) -> None:
    with Reconcilers(source) as network:

        @network.reconcile("vhost/")
        def vhosts(key: str, value: Any, previous: Any) -> None:
            apply(key, value, previous)

        @network.reconcile("cert/", name="certificates", workers=2)
        def certs(key: str, value: Any, previous: Any) -> None:
            apply(key, value, previous)

        snapshot(source, 1, {"vhost/a": b"1", "cert/b": b"2"})
        network.wait_synced(PATIENT)
        assert sorted(apply.keys()) == ["cert/b", "vhost/a"]
        assert [one.name for one in network.members] == ["vhosts", "certificates"]
        network.reconcile_all()
        apply.wait(4)
    assert source.status().subscriptions == {}


@pytest.mark.parametrize(
    "options",
    [
        {"apply": None}, {"codec": object()}, {"workers": 0}, {"every": 0}, {"deadline": -1}, {"settle": (2, 1)},
        {"max_delete": -1}, {"max_delete": 1.5}, {"max_delete": True}, {"depends": {"c/": 3}}, {"state": "/"},
    ],
    ids=lambda options: next(iter(options)),
)  # fmt: skip
def test_c20_wrong_arguments_are_named_before_anything_is_opened(
    source: Registry, apply: Recorder, options: dict[str, Any]
) -> None:
    with pytest.raises(InvalidArgumentError):
        Reconciler(source, "r", "k/", **{"apply": apply, **options})
    assert source.status().subscriptions == {}
    with pytest.raises(InvalidArgumentError):
        Retry(first=0)


def test_c12_a_later_look_calls_no_key_whose_source_has_told_nothing(apply: Recorder, clock: ManualClock) -> None:
    with Registry("up", sourced=True) as up, Registry("down", sourced=True) as down:
        both = KVProtoWatchers(up, down)
        with Reconciler(both, "r", "k/", apply=apply, known=["k/a", "k/b"], clock=clock) as reconciler:
            snapshot(up, 1, {"k/a": b"1"})
            apply.wait(1)
            # when a key of the other one is to be looked at later / then nothing is called in its place
            reconciler.requeue("k/b", after=1.0)
            clock.advance(2.0)
            reconciler.requeue("k/a")
            assert apply.wait(2)[1] == ("k/a", 1, 1)
            # and it is called when its source has told its state
            snapshot(down, 1, {"k/b": b"2"})
            assert apply.wait(3)[2] == ("k/b", 2, None)


class Wordless(Exception):
    """As legacy code has them: an error whose text raises."""

    def __str__(self) -> str:
        return str(self.detail)  # type: ignore[attr-defined]  # never set


def test_c20_an_error_that_cannot_tell_its_text_fails_its_key_only(local: Registry, apply: Recorder) -> None:
    apply.on["k/a"] = fail(Wordless())
    with Reconciler(local, "r", "k/", apply=apply):
        with pytest.raises(PropagationError, match="Wordless"):
            put(local, "k/a", b"1")
        put(local, "k/b", b"2")
    assert apply.calls == [("k/a", 1, None), ("k/b", 2, None)]


def test_c20_a_previous_value_that_no_longer_decodes_stops_nothing(
    source: Registry, apply: Recorder, tmp_path: Path
) -> None:
    # given a state that was made with a codec that read more
    with Reconciler(source, "r", "k/", apply=apply, codec=codecs.text, state=tmp_path / "state") as first:
        snapshot(source, 1, {"k/a": b"old", "k/b": b"old"})
        first.wait_synced(PATIENT)
    apply.calls.clear()
    with Reconciler(source, "r", "k/", apply=apply, codec=codecs.json, state=tmp_path / "state"):
        # when the values are mended, or deleted
        commit(source, 2, {"k/a": b"1", "k/b": None})
        # then they are called
        wait_until(lambda: len(apply.calls) == 2, "both were called")
    assert sorted(apply.calls) == [("k/a", 1, None), ("k/b", None, None)]


def test_c20_a_failed_key_that_was_held_is_called_when_it_is_back(
    source: Registry, apply: Recorder, clock: ManualClock
) -> None:
    apply.on["k/a"] = fail(OSError())
    with Reconciler(source, "r", "k/", apply=apply, max_delete=0, clock=clock) as reconciler:
        snapshot(source, 1, {"k/a": b"1"})
        apply.wait(1)
        # when its delete is held while its retry becomes due
        snapshot(source, 2, {})
        wait_until(lambda: reconciler.held, "the delete is held")
        apply.on.clear()
        clock.advance(600.0)
        wait_until(lambda: not reconciler.status().waiting, "the retry was looked at")
        # then it is called when it is back, with the same value
        snapshot(source, 3, {"k/a": b"1"})
        assert apply.wait(2)[1] == ("k/a", 1, None)


def test_c12_a_pair_without_bytes_is_no_missing_key(local: Registry, apply: Recorder) -> None:
    odd = Change("k/a", Int32Value(value=3))
    local.propagate_changes({"k/a": odd, "k/b": Change("k/b", StringValue(value="x"))}, timeout=PATIENT)
    codec = codecs.message(StringValue)
    with Reconciler(local, "r", "k/", apply=apply, codec=codec, known=["k/a", "k/b"]) as reconciler:
        wait_until(lambda: reconciler.status().synced, "everything is applied")
        reconciler.requeue("k/b")
        wait_until(lambda: len(apply.calls) >= 2, "the other one is called twice")
    assert set(apply.keys()) == {"k/b"}


def test_c11_a_second_reconciler_of_one_name_leaves_the_file_of_the_first_alone(
    source: Registry, apply: Recorder, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    with Reconciler(source, "r", "k/", apply=apply, state=state) as first:
        with pytest.raises(SubscriptionError):
            Reconciler(source, "r", "k/", apply=apply, state=state)
        snapshot(source, 1, {"k/a": b"1"})
        first.wait_synced(PATIENT)
    apply.calls.clear()
    with Registry("store", sourced=True) as later, Reconciler(later, "r", "k/", apply=apply, state=state):
        snapshot(later, 2, {})
        assert apply.wait(1) == [("k/a", None, None)]


def restarted(source: Registry, apply: Recorder, state: Path, **options: Any) -> list[str]:
    """The keys that another start calls, with the state that the source has."""
    apply.calls.clear()
    apply.on.clear()
    with Reconciler(source, "r", "k/", apply=apply, state=state, **options) as again:
        again.wait_synced(PATIENT)
    return sorted(apply.keys())


def test_c20_a_call_that_ends_after_another_key_changed_does_not_count_for_the_next_start(
    source: Registry, apply: Recorder, tmp_path: Path
) -> None:
    # given a key in a call, and another one, on which it depends
    depends = {"cert/": lambda key, value: ["k/a"]}
    state, copy = tmp_path / "state", tmp_path / "copy"
    gate, inside = threading.Event(), threading.Event()

    def stay() -> None:
        inside.set()
        assert gate.wait(PATIENT)

    with Reconciler(source, "r", "k/", apply=apply, state=state, depends=depends) as reconciler:
        snapshot(source, 1, {"k/a": b"1", "k/b": b"1", "cert/x": b"1"})
        reconciler.wait_synced(PATIENT)
        apply.on["k/a"] = stay
        commit(source, 2, {"k/a": b"2"})
        assert inside.wait(PATIENT)
        # when that changes during the call, and the process is killed between that call and the next one
        commit(source, 3, {"cert/x": b"2"})
        wait_until(lambda: reconciler.status().waiting == 1, "it is to be called again")
        write, taken = reconciler._applied.write_begin, threading.Event()

        def keep(key: str) -> None:
            if not taken.is_set():
                copy.write_bytes(state.read_bytes())
                taken.set()
            write(key)

        reconciler._applied = cast(
            "Any", SimpleNamespace(write_begin=keep, write_accepted=reconciler._applied.write_accepted)
        )
        gate.set()
        assert taken.wait(PATIENT)
        reconciler.wait_synced(PATIENT)
    # then the next start calls it
    assert restarted(source, apply, copy, depends=depends) == ["k/a"]
    # and without a kill nothing is left to do
    assert restarted(source, apply, state, depends=depends) == []


def test_c20_a_call_again_later_is_made_by_the_next_start(source: Registry, apply: Recorder, tmp_path: Path) -> None:
    # given a key that was applied, and asked for another call
    state = tmp_path / "state"
    apply.on["k/a"] = lambda: RetryAfter(3600)
    with Reconciler(source, "r", "k/", apply=apply, state=state) as reconciler:
        snapshot(source, 1, {"k/a": b"1", "k/b": b"1"})
        reconciler.wait_synced(PATIENT)
    # when the process starts again before / then it is called, once
    assert restarted(source, apply, state) == ["k/a"]
    assert restarted(source, apply, state) == []
