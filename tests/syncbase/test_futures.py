"""Answers: futures, callbacks, and many of them as one (C9; D9, D12, D13)."""

from __future__ import annotations

import concurrent.futures
import threading
from typing import Any

import pytest

from datasync.errors import (
    ClosedError,
    DeliveryTimeout,
    DoneTimeout,
    InvalidArgumentError,
    PropagationError,
)
from datasync.runtime.threads import ForkGuard
from datasync.syncbase.futures import DoneCallback, DoneFuture, Outcome, PropagationFuture, aggregate_done
from tests.conftest import PATIENT

REFUSED = ValueError("refused")


def test_c9_done_settles_once() -> None:
    # given a future and a callback
    seen: list[BaseException | None] = []
    future, callback = DoneFuture(), DoneCallback(seen.append)
    # when each is answered twice / then only the first answer counts
    assert [future.done(REFUSED), future.done()] == [True, False]
    assert [callback.done(), callback.done(REFUSED)] == [True, False]
    with pytest.raises(ValueError, match="refused"):
        future.result(0)
    assert seen == [None]


def test_c9_exactly_one_of_many_threads_is_first() -> None:
    seen: list[BaseException | None] = []
    for answer in (DoneFuture(), DoneCallback(seen.append)):
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            barrier = threading.Barrier(8)

            def race(answer: Any = answer, barrier: threading.Barrier = barrier) -> bool:
                barrier.wait(PATIENT)
                return bool(answer.done())

            assert sorted(one.result(PATIENT) for one in [pool.submit(race) for _ in range(8)]) == [False] * 7 + [True]
    assert seen == [None]


@pytest.mark.parametrize("wrong", ["text", 1, ValueError, False])
def test_c16_an_answer_is_an_exception_or_none(wrong: Any) -> None:
    for answer in (DoneFuture(), DoneCallback(lambda error: pytest.fail("was called"))):
        with pytest.raises(InvalidArgumentError, match="None or an exception"):
            answer.done(wrong)
    future = DoneFuture()
    with pytest.raises(InvalidArgumentError):
        future.done(wrong)
    assert future.done() is True


def test_d09_waiting_in_vain_raises_and_the_late_answer_still_counts() -> None:
    future = DoneFuture()
    with pytest.raises(DoneTimeout):
        future.result(0.01)
    assert future.done() is True
    future.result(0)


def test_c15_a_callback_of_the_future_may_come_back_in() -> None:
    # given a future whose callback answers again, and one that reads it
    answer = DoneFuture()
    seen: list[bool] = []
    answer.future.add_done_callback(lambda _: seen.append(answer.done()))
    # when it is answered, in a thread of its own so that a deadlock would be found
    thread = threading.Thread(target=answer.done, daemon=True)
    thread.start()
    thread.join(PATIENT)
    # then nothing hangs
    assert not thread.is_alive()
    assert seen == [False]


def test_c15_a_callback_that_raises_is_logged_and_hurts_nobody(caplog: pytest.LogCaptureFixture) -> None:
    def poisoned(error: BaseException | None) -> None:
        raise RuntimeError("poisoned")

    callback = DoneCallback(poisoned)
    assert callback.done() is True
    assert callback.done() is False
    assert "a done callback raised" in caplog.text


def test_a_timeout_as_the_answer_is_told_from_no_answer() -> None:
    answer = DoneFuture()
    error = concurrent.futures.TimeoutError("the consumer's own")
    answer.done(error)
    with pytest.raises(concurrent.futures.TimeoutError) as caught:
        answer.result(1)
    assert caught.value is error


def test_an_answer_that_meets_the_timeout_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    # given an answer that comes between the end of the wait and the look at it
    answer = DoneFuture()
    wait = answer.future.result

    def meet(timeout: float | None = None) -> None:
        if answer.done():
            raise concurrent.futures.TimeoutError
        wait(timeout)

    monkeypatch.setattr(answer.future, "result", meet)
    # when it is waited for / then it is an answer
    answer.result(1)


# -- many as one


def test_d13_all_failures_are_kept_in_the_order_of_the_names() -> None:
    # given three answers
    futures = {name: DoneFuture() for name in "abc"}
    combined = aggregate_done({name: one.future for name, one in futures.items()})
    # when they come in another order
    futures["c"].done(ValueError("of c"))
    futures["b"].done()
    assert not combined.done()
    futures["a"].done(KeyError("of a"))
    # then both failures are there
    error = combined.exception(PATIENT)
    assert isinstance(error, PropagationError)
    assert list(error.errors) == ["a", "c"]


def test_d12_a_hundred_answers_at_once_are_all_counted() -> None:
    # given more answers than Go's buffer of five had room for, each given twice
    answers = {str(number): DoneFuture() for number in range(100)}
    combined = aggregate_done({name: one.future for name, one in answers.items()})
    barrier = threading.Barrier(8)

    def answer(part: int) -> None:
        barrier.wait(PATIENT)
        for one in list(answers.values())[part::8]:
            one.done()
            one.done(REFUSED)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(answer, range(8)))
    # then the last one completes it, and the second answers count for nothing
    assert combined.result(PATIENT) is None


def test_nobody_to_wait_for_is_an_answer() -> None:
    assert aggregate_done({}).result(0) is None


def test_a_cancelled_future_is_a_failure() -> None:
    future: concurrent.futures.Future[None] = concurrent.futures.Future()
    combined = aggregate_done({"one": future})
    future.cancel()
    error = combined.exception(PATIENT)
    assert isinstance(error, PropagationError)
    assert isinstance(error.errors["one"], concurrent.futures.CancelledError)


# -- a caller's future


class Asked:
    """A subscription in which nothing waits."""

    def tick(self) -> None:
        pass


def answered(*answers: tuple[str, BaseException | None], extra: str = "") -> PropagationFuture:
    future = PropagationFuture(lambda: "the transaction", 0.01, ForkGuard("the registry"))
    names = [name for name, _ in answers] + ([extra] if extra else [])
    future.expect(Outcome(7), {name: Asked() for name in names})
    for name, error in answers:
        if future.collect(name, error):
            future.finish()
    return future


def test_c9_success_is_the_outcome() -> None:
    assert answered(("a", None), ("b", None)).result() == Outcome(7, (), ())


def test_c9_a_refusal_is_told_by_name_and_any_other_failure_with_it() -> None:
    future = answered(("a", None), ("b", REFUSED), ("c", ClosedError("closed")))
    with pytest.raises(PropagationError) as caught:
        future.result()
    assert list(caught.value.errors) == ["b", "c"]
    assert caught.value.errors["b"] is REFUSED


@pytest.mark.parametrize("kind", [DeliveryTimeout, DoneTimeout, ClosedError])
def test_c9_one_cause_that_is_nobodys_refusal_keeps_its_class(kind: Any) -> None:
    future = answered(("a", kind("x")), ("b", kind("y")), ("c", None))
    with pytest.raises(kind, match="a, b"):
        future.result()
    assert isinstance(future.exception(), kind)


def test_d09_the_silent_are_named(caplog: pytest.LogCaptureFixture) -> None:
    future = answered(("a", None), extra="sleepy")
    with pytest.raises(DoneTimeout, match="sleepy") as caught:
        future.result(0.01)
    assert caught.value.silent == ("sleepy",)
    with pytest.raises(DoneTimeout):
        future.exception(0.01)
    assert "done was not called" in caplog.text
    # and its late answer counts
    if future.collect("sleepy", None):
        future.finish()
    assert future.result().revision == 7


def test_c9_a_future_cannot_be_cancelled() -> None:
    future = answered(extra="a")
    assert future.cancel() is False
    assert not future.cancelled()


def test_d18_the_callers_mapping_of_futures_is_not_kept() -> None:
    # given an aggregate whose caller goes on with the mapping
    futures: dict[str, concurrent.futures.Future[None]] = {"a": concurrent.futures.Future()}
    combined, asked = aggregate_done(futures), futures.pop("a")
    # when one fails / then that is not lost
    asked.set_exception(ValueError("no"))
    with pytest.raises(PropagationError, match="a: ValueError"):
        combined.result(0)


def test_c9_who_asks_late_is_told_how_long_nothing_came() -> None:
    future = answered(extra="sleepy")
    with pytest.raises(DoneTimeout, match=r"within 0\.[3-9] s"):
        future.result(0.3)
    # asking again without any patience does not look like no time at all
    with pytest.raises(DoneTimeout, match=r"within 0\.[3-9] s"):
        future.exception(0)
