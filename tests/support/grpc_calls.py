"""Looks after gRPC calls that are left to the garbage collector.

The collector may come to one at the end of the interpreter, and then waits for a lock that a thread of grpc's has taken
with it: the process never ends (C15).
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from tests.conftest import wait_until


@contextmanager
def all_calls_freed() -> Iterator[None]:
    """Fail when a call that is made within is still there afterwards, while the collector does not run."""
    gc.collect()
    before = _calls()
    gc.disable()
    try:
        yield
        wait_until(lambda: _calls() <= before, "all calls are freed")
    finally:
        gc.enable()


def _calls() -> int:
    return sum(isinstance(one, grpc.Call) for one in gc.get_objects())
