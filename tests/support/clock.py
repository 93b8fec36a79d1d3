"""The clock that stands still until the test moves it: the one that ships for users' tests."""

from datasync.testing.clock import ManualClock

__all__ = ["ManualClock"]
