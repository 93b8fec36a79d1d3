"""The clock of leases and TTLs."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from datasync.runtime import boot_clock


def test_c15_the_boot_clock_never_goes_back_and_keeps_pace_with_the_monotonic_clock() -> None:
    # given
    began, monotonic = boot_clock.now(), time.monotonic()

    # when
    readings = [boot_clock.now() for _ in range(10_000)]
    passed, monotonic_passed = readings[-1] - began, time.monotonic() - monotonic

    # then
    assert readings == sorted(readings)
    assert 0 <= passed <= monotonic_passed + 1.0


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="this system has no such clock")
def test_c15_the_boot_clock_counts_the_time_of_a_suspended_machine() -> None:
    # given
    before = time.clock_gettime(time.CLOCK_BOOTTIME)

    # when
    read = boot_clock.now()

    # then: it is that very clock, which differs from time.monotonic() by the seconds of suspend
    assert before <= read <= time.clock_gettime(time.CLOCK_BOOTTIME)


def test_c15_processes_of_one_boot_read_the_same_boot_clock() -> None:
    # given
    before = boot_clock.now()

    # when
    program = "from datasync.runtime import boot_clock; print(boot_clock.now())"
    elsewhere = float(subprocess.run([sys.executable, "-c", program], check=True, capture_output=True).stdout)

    # then
    assert before <= elsewhere <= boot_clock.now()


def test_c15_a_system_without_that_clock_uses_the_monotonic_one(monkeypatch: pytest.MonkeyPatch) -> None:
    # given
    for name in ("CLOCK_BOOTTIME", "CLOCK_MONOTONIC_RAW"):
        monkeypatch.delattr(time, name, raising=False)

    # when / then
    assert boot_clock._number() is None


def test_c15_a_kernel_that_does_not_know_that_clock_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    # given
    for name in ("CLOCK_BOOTTIME", "CLOCK_MONOTONIC_RAW"):
        monkeypatch.setattr(time, name, 999, raising=False)

    # when / then
    assert boot_clock._number() is None
