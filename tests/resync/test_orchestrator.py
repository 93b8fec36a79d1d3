"""Everybody starts over, in order, and the one who asked is told how it went (C14)."""

from __future__ import annotations

import math
import os
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasync import resync
from datasync.errors import ClosedError, DatasyncError, ForkedError, InvalidArgumentError
from datasync.resync import Plugin, ResyncOutcome, ResyncRegistration, ResyncStatus, StatusEvent
from tests.conftest import take, wait_until
from tests.support.timing import at_most

#: Long enough for a busy machine where the test expects an answer, and short where it expects none.
PLENTY, LITTLE = 20.0, 0.05


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as executor:
        yield executor


@pytest.fixture
def plugin() -> Iterator[Plugin]:
    with Plugin(accept_timeout=PLENTY, ack_timeout=PLENTY) as made:
        yield made


def outcomes(report: resync.ResyncReport) -> list[tuple[str, ResyncOutcome]]:
    return [(result.resync_name, result.outcome) for result in report.results]


def answer(registration: ResyncRegistration, error: BaseException | None = None) -> bool:
    event = take(registration.status_queue)
    assert (event.status, event.resync_name) == (ResyncStatus.STARTED, registration.resync_name)
    return bool(event.ack(error))


# -- the order, the outcomes ------------------------------------------------------------------------------------------


def test_c14_registrations_are_asked_in_order_and_one_at_a_time(plugin: Plugin, pool: ThreadPoolExecutor) -> None:
    # given three registrations
    first, second, third = (plugin.register(name) for name in ("b", "a", "c"))
    # when a resync is asked for
    running = pool.submit(plugin.do_resync)
    for registration, later in [(first, [second, third]), (second, [third]), (third, [])]:
        event = take(registration.status_queue)
        # then each is asked only when the one before has answered
        assert all(other.status_queue.empty() for other in later)
        assert event.ack() is True
    report = running.result(PLENTY)
    assert outcomes(report) == [
        ("b", ResyncOutcome.APPLIED),
        ("a", ResyncOutcome.APPLIED),
        ("c", ResyncOutcome.APPLIED),
    ]
    assert report.ok
    assert all(result.seconds >= 0 for result in report.results)


def _acks(event: StatusEvent) -> None:
    event.ack()


def _refuses(event: StatusEvent) -> None:
    event.ack(ValueError("no"))


def _raises(event: StatusEvent) -> None:
    raise KeyError("broken")


def _raises_after_ack(event: StatusEvent) -> None:
    event.ack()
    raise KeyError("broken")


def _silent(event: StatusEvent) -> None:
    pass


BEHAVIOURS: dict[Callable[[StatusEvent], None] | None, ResyncOutcome] = {
    _acks: ResyncOutcome.APPLIED,
    _refuses: ResyncOutcome.FAILED,
    _raises: ResyncOutcome.FAILED,
    _raises_after_ack: ResyncOutcome.FAILED,
    _silent: ResyncOutcome.TIMED_OUT,
    None: ResyncOutcome.NOT_ACCEPTED,
}


@given(st.lists(st.sampled_from(list(BEHAVIOURS)), max_size=6))
def test_d29_the_report_tells_the_truth_in_the_order_of_registration(
    handlers: list[Callable[[StatusEvent], None] | None],
) -> None:
    # given registrations that apply, refuse, raise, stay silent, or do not listen at all
    with Plugin(accept_timeout=0.001, ack_timeout=0.001) as plugin:
        for place, handler in enumerate(handlers):
            plugin.register(f"name-{place % 2}", handler)
        # when a resync is asked for
        report = plugin.do_resync()
    # then the report has one line for each, in order, whatever those before it did
    assert outcomes(report) == [(f"name-{place % 2}", BEHAVIOURS[handler]) for place, handler in enumerate(handlers)]
    assert report.ok is all(handler is _acks for handler in handlers)
    failed = [result for result in report.results if result.outcome is ResyncOutcome.FAILED]
    assert all(isinstance(result.error, (ValueError, KeyError)) for result in failed)


def test_c14_a_handler_may_answer_later_from_another_thread(plugin: Plugin, pool: ThreadPoolExecutor) -> None:
    # given a handler that only keeps the event
    kept: queue.Queue[StatusEvent] = queue.Queue()
    registration = plugin.register("later", kept.put)
    running = pool.submit(plugin.do_resync)
    # when another thread answers with an error
    assert take(kept).ack(ValueError("refused")) is True
    # then that is the outcome, and no queue was used
    (result,) = running.result(PLENTY).results
    assert (result.outcome, str(result.error)) == (ResyncOutcome.FAILED, "refused")
    assert registration.status_queue.empty()


def test_c14_without_registrations_a_resync_is_fine(plugin: Plugin) -> None:
    assert plugin.do_resync().ok
    assert str(plugin.do_resync()) == "no registrations"


def test_d26_two_registrations_may_share_a_name(plugin: Plugin, pool: ThreadPoolExecutor) -> None:
    # given two of one name, as two stores in one KVProtoWatchers make them
    one, two = plugin.register("agent"), plugin.register("agent")
    running = pool.submit(plugin.do_resync)
    # when one applies and the other fails
    answer(one)
    answer(two, ValueError("no"))
    # then both are told apart
    assert outcomes(running.result(PLENTY)) == [("agent", ResyncOutcome.APPLIED), ("agent", ResyncOutcome.FAILED)]


# -- time -------------------------------------------------------------------------------------------------------------


def test_c14_an_event_that_was_not_accepted_in_time_is_taken_back(pool: ThreadPoolExecutor) -> None:
    # given a registration whose consumer is away
    with Plugin(accept_timeout=LITTLE, ack_timeout=PLENTY) as plugin:
        registration = plugin.register("away")
        # when the resync has gone on without it
        assert outcomes(plugin.do_resync()) == [("away", ResyncOutcome.NOT_ACCEPTED)]
        # then a late consumer finds no stale event, and join() does not wait for it
        assert registration.status_queue.empty()
        registration.status_queue.join()


def test_d25_a_late_answer_is_counted_and_poisons_nothing(pool: ThreadPoolExecutor) -> None:
    # given a consumer that takes the event and answers too late
    with Plugin(accept_timeout=PLENTY, ack_timeout=LITTLE) as plugin:
        registration = plugin.register("slow")
        running = pool.submit(plugin.do_resync)
        event = take(registration.status_queue)
        assert outcomes(running.result(PLENTY)) == [("slow", ResyncOutcome.TIMED_OUT)]
        # when it answers after all
        assert event.ack() is False
        # then the answer is counted, and the next resync is as good as any
        assert plugin.late_acks == 1
        plugin._ack_timeout = PLENTY
        running = pool.submit(plugin.do_resync)
        assert answer(registration) is True
        assert running.result(PLENTY).ok


def test_c14_a_second_answer_does_not_count(plugin: Plugin, pool: ThreadPoolExecutor) -> None:
    registration = plugin.register("twice")
    running = pool.submit(plugin.do_resync)
    event = take(registration.status_queue)
    assert event.ack() is True
    assert event.ack(ValueError("changed my mind")) is False
    assert running.result(PLENTY).ok
    assert plugin.late_acks == 0


def test_c14_timeouts_are_module_constants_and_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    # given the documented defaults
    assert (resync.RESYNC_ACCEPT_TIMEOUT, resync.RESYNC_ACK_TIMEOUT) == (1.0, 10.0)
    # when the constants are set after the plugin was made
    with Plugin() as plugin:
        plugin.register("away")
        monkeypatch.setattr("datasync.resync.orchestrator.RESYNC_ACCEPT_TIMEOUT", LITTLE)
        # then they count
        assert plugin.do_resync().results[0].seconds < at_most(1.0)


@pytest.mark.parametrize("seconds", [0, -1, math.nan, math.inf])
def test_c16_a_useless_timeout_is_refused(seconds: float) -> None:
    with pytest.raises(InvalidArgumentError, match="ack_timeout"):
        Plugin(ack_timeout=seconds)


# -- at the same time -------------------------------------------------------------------------------------------------


def test_d27_resyncs_asked_for_at_the_same_time_run_one_after_the_other(
    plugin: Plugin, pool: ThreadPoolExecutor
) -> None:
    # given two registrations that note who asks
    log: list[str] = []

    def noting(name: str) -> Callable[[StatusEvent], None]:
        def handle(event: StatusEvent) -> None:
            log.append(f"{threading.current_thread().name} {name}")
            event.ack()

        return handle

    for name in ("a", "b", "c"):
        plugin.register(name, noting(name))
    # when eight threads ask at once
    barrier = threading.Barrier(8)

    def ask() -> bool:
        barrier.wait(PLENTY)
        return plugin.do_resync().ok

    assert all(future.result(PLENTY) for future in [pool.submit(ask) for _ in range(8)])
    # then each went through all before the next began
    assert len(log) == 24
    for turn in range(0, 24, 3):
        names = [line.split() for line in log[turn : turn + 3]]
        assert [name for _, name in names] == ["a", "b", "c"]
        assert len({thread for thread, _ in names}) == 1
    assert plugin.runs == 8


def test_c15_a_resync_from_within_a_handler_is_refused(plugin: Plugin) -> None:
    # given a handler that asks for another resync
    plugin.register("loop", lambda event: plugin.do_resync())
    # when it is called / then nothing hangs and the report has the reason
    (result,) = plugin.do_resync().results
    assert result.outcome is ResyncOutcome.FAILED
    assert isinstance(result.error, DatasyncError)
    assert "handler" in str(result.error)


def test_c14_a_keyboard_interrupt_leaves_the_next_resync_its_turn(plugin: Plugin) -> None:
    interrupts = [KeyboardInterrupt()]

    def handle(event: StatusEvent) -> None:
        if interrupts:
            raise interrupts.pop()
        event.ack()

    plugin.register("one", handle)
    with pytest.raises(KeyboardInterrupt):
        plugin.do_resync()
    assert plugin.do_resync().ok


def test_c14_who_joins_during_a_resync_waits_for_the_next(plugin: Plugin, pool: ThreadPoolExecutor) -> None:
    def join(event: StatusEvent) -> None:
        plugin.register("late", _acks)
        event.ack()

    plugin.register("early", join)
    assert outcomes(plugin.do_resync()) == [("early", ResyncOutcome.APPLIED)]
    assert [name for name, _ in outcomes(plugin.do_resync())] == ["early", "late"]


# -- close ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accepted", [False, True])
def test_d28_closing_a_registration_ends_the_wait_for_it(
    plugin: Plugin, pool: ThreadPoolExecutor, accepted: bool
) -> None:
    # given a resync that waits for acceptance, or for the answer
    first, second = plugin.register("first"), plugin.register("second", _acks)
    running = pool.submit(plugin.do_resync)
    if accepted:
        event = take(first.status_queue)
    else:
        wait_until(lambda: not first.status_queue.empty(), "the event is offered")
    # when that registration is closed
    first.close()
    first.close()
    # then the resync goes on at once, with the next one
    report = running.result(PLENTY / 2)
    assert outcomes(report) == [("first", ResyncOutcome.FAILED), ("second", ResyncOutcome.APPLIED)]
    assert isinstance(report.results[0].error, ClosedError)
    # and the consumer's thread finds the last event, and is not asked again
    last = take(first.status_queue)
    assert last.status is ResyncStatus.STOPPED
    assert last.ack() is False
    if accepted:
        assert event.ack() is False
    assert plugin.late_acks == 0
    assert [name for name, _ in outcomes(plugin.do_resync())] == ["second"]
    assert second.status_queue.empty()


def test_d28_closing_the_plugin_ends_the_running_and_the_waiting_resync(pool: ThreadPoolExecutor) -> None:
    # given a resync that waits for an answer and another that waits for its turn
    plugin = Plugin(accept_timeout=PLENTY, ack_timeout=PLENTY)
    registration = plugin.register("silent")
    running = pool.submit(plugin.do_resync)
    take(registration.status_queue)
    waiting = pool.submit(plugin.do_resync)
    # when the plugin is closed
    plugin.close()
    plugin.close()
    # then both end with a clear error, and so does what comes later
    for future in (running, waiting):
        with pytest.raises(ClosedError):
            future.result(PLENTY / 2)
    with pytest.raises(ClosedError):
        plugin.do_resync()
    with pytest.raises(ClosedError, match="newcomer"):
        plugin.register("newcomer")
    assert take(registration.status_queue).status is ResyncStatus.STOPPED


def test_c15_a_consumer_may_close_the_plugin(plugin: Plugin, pool: ThreadPoolExecutor) -> None:
    plugin.register("closer", lambda event: plugin.close())
    with pytest.raises(ClosedError):
        pool.submit(plugin.do_resync).result(PLENTY)


def test_c15_a_thousand_registrations_leave_nothing_behind(plugin: Plugin) -> None:
    before = threading.active_count()
    for _ in range(1000):
        plugin.register("fleeting").close()
    assert plugin._registrations == []
    assert threading.active_count() == before


# -- bad input, fork --------------------------------------------------------------------------------------------------


def test_c16_a_name_must_be_text(plugin: Plugin) -> None:
    names: list[Any] = ["", None, 7]
    for name in names:
        with pytest.raises(InvalidArgumentError, match="resync name"):
            plugin.register(name)


def test_c16_an_answer_is_an_exception_or_none(plugin: Plugin) -> None:
    wrong: Any = "text"

    def handle(event: StatusEvent) -> None:
        with pytest.raises(InvalidArgumentError, match="str"):
            event.ack(wrong)
        event.ack()

    plugin.register("one", handle)
    assert plugin.do_resync().ok


def test_c14_a_consumer_may_wake_itself_through_its_queue(plugin: Plugin) -> None:
    registration = plugin.register("one")
    registration.status_queue.put(None)
    assert take(registration.status_queue) is None


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_i17_the_plugin_of_the_parent_is_refused_in_a_forked_child(plugin: Plugin) -> None:
    # given a child made by fork
    registration = plugin.register("parent's")
    child = os.fork()
    if not child:
        # when it uses the parent's plugin
        try:
            plugin.do_resync()
        except ForkedError:
            plugin.close()
            registration.close()
            os._exit(0)
        finally:
            os._exit(1)
    # then it is told so, and the parent's is untouched
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert registration.status_queue.empty()
