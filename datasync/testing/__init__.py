"""Helpers for the tests of programs that use datasync: a clock, faults, overridden values, and pytest fixtures.

Nothing here needs pytest but the fixtures, which pytest loads with ``pytest_plugins = ["datasync.testing"]`` in the
``conftest.py`` at the root of your tests. PYTEST_DONT_REWRITE: a ``conftest.py`` may import names from here first.
"""

from datasync.consumer.view.overlay import ABSENT
from datasync.testing.backoffs import SHORT, short_backoffs
from datasync.testing.clock import ManualClock
from datasync.testing.faults import Faults
from datasync.testing.overriding import override
from datasync.testing.settling import settle
from datasync.testing.subscriber import RecordingSubscriber

__all__ = [
    # Time
    "ManualClock",
    "short_backoffs",
    "SHORT",
    "settle",
    # What can happen
    "Faults",
    "RecordingSubscriber",
    # Values
    "override",
    "ABSENT",
]

#: Loaded by pytest with this package.
pytest_plugins = ["datasync.testing.fixtures"]
