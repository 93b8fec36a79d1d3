"""Growing pauses (C10, C13)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from datasync.backoff import Backoff


@given(st.floats(0.001, 10), st.floats(10, 1000), st.integers(1, 80))
def test_c13_a_pause_is_between_zero_and_a_bound_that_doubles_up_to_the_longest(
    first: float, most: float, attempts: int
) -> None:
    backoff = Backoff(first, most)
    for attempt in range(attempts):
        assert 0 <= backoff.next() <= min(most, first * 2**attempt)
    assert backoff.failures == attempts


@given(st.integers(1, 20))
def test_c10_with_another_spread_it_never_falls_below_the_doubled_pause(attempts: int) -> None:
    backoff = Backoff(1.0, 300.0, spread=(1.0, 1.5))
    for attempt in range(attempts):
        assert min(300.0, 2.0**attempt) <= backoff.next() <= min(300.0, 1.5 * 2.0**attempt)


def test_a_success_starts_over() -> None:
    backoff = Backoff(1.0, 8.0, spread=(1.0, 1.0))
    assert [backoff.next() for _ in range(6)] == [1.0, 2.0, 4.0, 8.0, 8.0, 8.0]
    backoff.reset()
    assert backoff.failures == 0
    assert backoff.next() == 1.0


def test_c13_five_hundred_clients_do_not_come_back_together() -> None:
    # given five hundred clients that lost one server at one time
    clients = [Backoff(0.1, 30.0) for _ in range(500)]
    # when each has taken eight pauses
    arrivals = [sum(client.next() for _ in range(8)) for client in clients]
    # then those eighth attempts are spread: no second holds more than a fifth of them
    busiest = max(sum(1 for arrival in arrivals if second <= arrival < second + 1) for second in range(60))
    assert busiest <= 100
    assert len({round(arrival, 6) for arrival in arrivals}) > 490


def test_after_a_very_long_time_it_is_still_a_number() -> None:
    backoff = Backoff(0.1, 30.0, spread=(1.0, 1.0))
    for _ in range(5000):
        pause = backoff.next()
    assert pause == 30.0
