"""Loggers that no handler stops; of the lines that strangers can cause, the first at once and then one a minute."""

from __future__ import annotations

import logging

import pytest

from datasync.runtime.logs import LOG_INTERVAL, MAX_TEXT, LimitedLog, get_logger, one_line
from tests.support.clock import ManualClock

LOG = get_logger("datasync.test_logs")


def test_c16_the_first_line_is_written_and_the_next_one_a_minute_later_counts_those_between(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = ManualClock()
    limited = LimitedLog(LOG, now=clock.monotonic)
    for number in range(500):
        limited.warning("no token from %s", f"10.0.0.{number}")
    clock.advance(LOG_INTERVAL)
    limited.warning("no token from %s", "10.9.9.9")
    assert [record.getMessage() for record in caplog.records] == [
        "no token from 10.0.0.0",
        "no token from 10.9.9.9 (and 499 more since the last such line)",
    ]
    assert {record.filename for record in caplog.records} == {"test_logs.py"}


def test_c16_a_line_after_a_quiet_minute_counts_nothing(caplog: pytest.LogCaptureFixture) -> None:
    clock = ManualClock()
    limited = LimitedLog(LOG, now=clock.monotonic)
    for _ in range(3):
        limited.warning("no token from %s", "10.0.0.1")
        clock.advance(LOG_INTERVAL)
    assert [record.getMessage() for record in caplog.records] == ["no token from 10.0.0.1"] * 3


def test_c16_lines_of_another_text_are_counted_apart(caplog: pytest.LogCaptureFixture) -> None:
    limited = LimitedLog(LOG, now=ManualClock().monotonic)
    limited.warning("no token from %s", "10.0.0.1")
    limited.error("no thread for %s", "10.0.0.1")
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "no token from 10.0.0.1"),
        ("ERROR", "no thread for 10.0.0.1"),
    ]


def test_c15_a_filter_that_raises_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    clock = ManualClock()
    limited = LimitedLog(LOG, now=clock.monotonic)

    def raising(_: logging.LogRecord) -> bool:
        raise RuntimeError("filter")

    LOG.addFilter(raising)
    try:
        limited.warning("no token")
        LOG.warning("not connected")
    finally:
        LOG.removeFilter(raising)
    assert caplog.records == []
    clock.advance(LOG_INTERVAL)
    limited.warning("no token")
    LOG.warning("connected to %s", "a")
    assert [record.getMessage() for record in caplog.records] == ["no token", "connected to a"]
    assert {record.filename for record in caplog.records} == {"test_logs.py"}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("port 80 is taken", "port 80 is taken"),
        ("Größe 日本", "Größe 日本"),
        ("two\nlines\r\n", r"two\nlines\r\n"),
        ("half of a pair \ud800", r"half of a pair \ud800"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("x" * (MAX_TEXT + 1), "x" * MAX_TEXT + "…"),
    ],
)
def test_the_text_of_a_user_is_one_line_that_every_handler_can_write(text: str, line: str) -> None:
    assert one_line(text) == line
    one_line(text).encode()
