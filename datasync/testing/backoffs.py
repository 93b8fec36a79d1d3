"""Short backoffs for everything that a program under test makes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from datasync.runtime.timeouts import Timeouts, replace_default

#: Backoffs of milliseconds instead of seconds, for the ``timeouts`` of a plugin or registry. All else is as usual.
SHORT = Timeouts(
    failure_backoff=(0.001, 0.05),
    retry_backoff=(0.001, 0.05),
    full_queue_backoff=(0.001, 0.01),
    redeliveries=(100_000.0, 100_000),
)


@contextmanager
def short_backoffs(timeouts: Timeouts = SHORT) -> Iterator[None]:
    """Give *timeouts* to every plugin, registry and reconciler, and every view that opens, that is not given others.

    It concerns what is made in the block, by any thread, and for as long as that lives. Also a decorator.

    Threads: any.
    """
    mark = object()
    replace_default(mark, timeouts)
    try:
        yield
    finally:
        replace_default(mark, None)
