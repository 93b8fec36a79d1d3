"""Registries that are closed at the end of the test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from datasync.runtime.timeouts import Timeouts
from datasync.runtime.timers import SYSTEM_CLOCK, Clock
from datasync.syncbase.registry import Registry
from tests.support.clock import ManualClock


@pytest.fixture
def timeouts() -> Timeouts:
    """The timeouts of the registries; a test parametrises this to set its own."""
    return Timeouts()


@pytest.fixture
def clock() -> ManualClock:
    """The clock of the registries of a test that asks for it; the others run on the system's."""
    return ManualClock()


def _clock(request: pytest.FixtureRequest) -> Clock:
    return request.getfixturevalue("clock") if "clock" in request.fixturenames else SYSTEM_CLOCK


@pytest.fixture
def registry(request: pytest.FixtureRequest, timeouts: Timeouts) -> Iterator[Registry]:
    """A registry that is fed by callers."""
    with Registry(timeouts=timeouts, clock=_clock(request)) as made:
        yield made


@pytest.fixture
def mirror(request: pytest.FixtureRequest, timeouts: Timeouts) -> Iterator[Registry]:
    """A registry that is fed by a reader, and was not fed yet."""
    with Registry("store", sourced=True, timeouts=timeouts, clock=_clock(request)) as made:
        yield made
