"""^C at any step of the delivery: it is raised, and the subscription goes on."""

from __future__ import annotations

import queue
import sys
from contextlib import suppress
from typing import Any

import pytest

from datasync.runtime.timeouts import Timeouts
from datasync.syncbase import delivery
from datasync.syncbase.change import ChangeBytes
from datasync.syncbase.registry import Registry
from datasync.syncbase.subscription import Subscription
from tests.conftest import take
from tests.support.interrupts import Interrupt

#: An event that ^C may have kept from the queue comes again soon.
SOON = Timeouts(failure_backoff=(0.01, 0.01))

#: The steps between the choice of an event and the end of its put.
STEPS = (
    delivery.deliver,
    delivery._begin_next_locked,
    Subscription.settle,
    Subscription.begin_locked,
    Subscription._begin_locked,
    delivery.PutTurn.end_locked,
    Subscription.after_put_locked,
)


def values(event: Any) -> dict[str, bytes]:
    if hasattr(event, "get_values"):
        return {pair.get_key(): pair.raw for pairs in event.get_values().values() for pair in pairs}
    return {change.get_key(): change.raw for change in event.get_changes()}


def put(registry: Registry, key: str) -> None:
    registry.submit_changes({key: ChangeBytes(key, b"1")})


@pytest.mark.skipif(sys.getprofile() is not None, reason="a profiler runs")
@pytest.mark.parametrize("interrupted", ["a change", "an answer"])
def test_c15_an_interrupt_at_any_step_stops_no_subscription(interrupted: str) -> None:
    count = 0
    while True:
        with Registry(timeouts=SOON) as registry:
            events: queue.Queue[Any] = queue.Queue()
            registry.watch("one", events, events, "")
            if interrupted == "an answer":
                put(registry, "a")
                put(registry, "b")
                first = take(events)
            # when ^C comes at the step number *count*
            with suppress(KeyboardInterrupt), Interrupt(STEPS, count) as interrupt:
                if interrupted == "an answer":
                    first.done()
                else:
                    put(registry, "a")
                    put(registry, "b")
            if not interrupt.raised:
                break
            if interrupted == "an answer":
                first.done()  # again: ^C may have come before it was taken
            # then what was changed comes, and what changes later
            put(registry, "c")
            seen: dict[str, bytes] = {"a": b"1"} if interrupted == "an answer" else {}
            wanted = {"a", "b", "c"}
            if interrupted == "a change" and registry.get("b") is None:
                wanted.remove("b")
            while set(seen) < wanted:
                event = take(events)
                seen.update(values(event))
                event.done()
        count += 1
    assert count > 20
