"""Growing pauses (C10, C13)."""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasync.runtime.backoff import AFTER_BREAK, Backoff


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


def test_c13_the_first_pause_after_a_break_is_wide_and_the_next_ones_go_on_from_there() -> None:
    # given a connection that was never there / then the pauses grow from the first one
    backoff = Backoff(0.1, 30.0, spread=(1.0, 1.0), after_break=1.0)
    assert [backoff.next() for _ in range(3)] == [0.1, 0.2, 0.4]
    # when it was there and broke / then everybody has a second, and then as long as after four failures
    backoff.reset()
    assert [backoff.next() for _ in range(7)] == [1.0, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6]
    assert backoff.failures == 7
    # and never longer than the longest
    short = Backoff(0.001, 0.01, spread=(1.0, 1.0), after_break=1.0)
    short.reset()
    assert [short.next() for _ in range(3)] == [0.01, 0.01, 0.01]


@pytest.fixture
def same_chance() -> Iterator[None]:
    """The pauses of each run are those of the last: in one of twenty others the slowest hundredth needs a third try."""
    before = random.getstate()
    random.seed(1)
    yield
    random.setstate(before)


def _attempts(clients: int, away: float, *, after_break: float, attempt: float = 0.01) -> tuple[list[float], float]:
    """When *clients* try, whose server is away for so long; and when 99 % of them are back after it is."""
    tries, back = [], []
    for _ in range(clients):
        backoff = Backoff(0.1, 30.0, after_break=after_break)
        backoff.reset()
        now = 0.0
        while True:
            now += backoff.next()
            tries.append(now)
            if now >= away:
                back.append(now - away)
                break
            now += attempt
    return tries, sorted(back)[clients * 99 // 100]


def _busiest(tries: list[float], begin: float = 0.0) -> int:
    """Attempts in the busiest second that begins with one, from *begin* on."""
    later = sorted(one for one in tries if one >= begin)
    return max(bisect_left(later, one + 1.0) - place for place, one in enumerate(later))


@pytest.mark.usefixtures("same_chance")
def test_i13_fewer_than_half_of_the_attempts_in_the_worst_second_and_nobody_is_back_later() -> None:
    # given a crowd that loses its server for half a second, and then for ten
    narrow, narrow_back = _attempts(2000, 0.5, after_break=0.0)
    wide, wide_back = _attempts(2000, 0.5, after_break=AFTER_BREAK)
    long_narrow, _ = _attempts(2000, 10.0, after_break=0.0)
    long_wide, _ = _attempts(2000, 10.0, after_break=AFTER_BREAK)
    # then the first second is far from what it would be without the wide first pause
    assert _busiest(wide) < 0.55 * _busiest(narrow)
    assert _busiest(long_wide) < 0.55 * _busiest(long_narrow)
    # and after a short break everybody is back within two seconds (I8)
    assert wide_back < 2.0
    assert wide_back < narrow_back + 0.4


@pytest.mark.usefixtures("same_chance")
def test_i13_after_a_long_break_no_second_has_more_than_a_tenth_of_the_crowd() -> None:
    # given five hundred clients whose server was away for two minutes
    tries, _ = _attempts(500, 120.0, after_break=AFTER_BREAK)
    # then from half a minute on, and also when it is back, no second has more than one in ten of them
    assert _busiest(tries, 30.0) <= 0.13 * 500  # 33 on the average; chance has its share in any one trial
    spread = [_busiest(_attempts(5000, 60.0, after_break=AFTER_BREAK)[0], 30.0) for _ in range(2)]
    assert max(spread) <= 0.1 * 5000


def test_after_a_very_long_time_it_is_still_a_number() -> None:
    backoff = Backoff(0.1, 30.0, spread=(1.0, 1.0))
    for _ in range(5000):
        pause = backoff.next()
    assert pause == 30.0
