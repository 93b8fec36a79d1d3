"""The library's own times and limits while a cell runs: as they are, or so short that all of them are met."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from datasync.keyval import memory, reader
from datasync.keyval.sqlite import stream as sqlite_stream
from datasync.runtime import timeouts as library_timeouts
from datasync.runtime.timeouts import Timeouts
from datasync.syncbase import backlog, registry, rejected, subscription
from tests.faults.workloads.workload import Workload

#: Seconds after which an event is given up in a hurried workload: short against a stuck consumer, or long.
HURRIED_ABANDON = (0.04, 0.25)
#: The same in the others, where somebody does not answer, and where everybody does.
ABANDON, PATIENT_ABANDON = 0.5, 10.0
#: The library's own, but for pauses that would be measured instead of it.
NATURAL = Timeouts(retry_backoff=(0.1, 1.0), failure_backoff=(0.05, 0.5), redeliveries=(200.0, 100))


class Times(NamedTuple):
    """What the records and the checkers need to know of them."""

    abandon: float
    failure_backoff: tuple[float, float]
    redeliveries: tuple[float, int]
    max_pending: int


@contextmanager
def shortened(workload: Workload, chance: random.Random, *, sourced: bool) -> Iterator[Times]:
    """Set them for one cell.

    Natural ones stay, but for pauses that would be measured instead of the library, and for what is to happen within a
    cell that otherwise takes a minute.
    """
    if not sourced or not (workload.hurried or workload.abandons):
        abandon = PATIENT_ABANDON  # a caller is told of what was given up, and nothing follows
    else:
        abandon = chance.choice(HURRIED_ABANDON) if workload.hurried else ABANDON
    timeouts = (_hurried_timeouts(chance) if workload.hurried else NATURAL)._replace(abandon=abandon)
    wanted = _hurried(chance) if workload.hurried else []
    wanted.append((library_timeouts, "DEFAULT_TIMEOUTS", timeouts))
    before = [(module, name, getattr(module, name)) for module, name, _ in wanted]
    try:
        for module, name, value in wanted:
            setattr(module, name, value)
        yield Times(abandon, timeouts.failure_backoff, timeouts.redeliveries, subscription.MAX_PENDING)
    finally:
        for module, name, value in before:
            setattr(module, name, value)


def _hurried_timeouts(chance: random.Random) -> Timeouts:
    return Timeouts(
        delivery=chance.choice((0.02, 0.1)),
        failure_backoff=(0.002, 0.03),
        redeliveries=(1000.0, chance.choice((2, 100))),
        full_queue_backoff=(0.001, 0.01),
        retry_backoff=(0.001, 0.02),
        anchor_patience=0.3,
    )


def _hurried(chance: random.Random) -> list[tuple[Any, str, Any]]:
    batch = chance.choice((1, 5, 1000))
    return [
        (reader, "GOOD_STREAM", 0.01),
        (memory, "IDLE", 0.02),
        (sqlite_stream, "IDLE", 0.02),
        (subscription, "MAX_PENDING", chance.choice((10, 60, 10_000))),
        (backlog, "MAX_BATCH", batch),
        (rejected, "MAX_BATCH", batch),
        (registry, "MAX_BATCH", batch),
    ]
