"""The library's own times and limits while a cell runs: as they are, or so short that all of them are met."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from datasync.keyval import memory, reader
from datasync.keyval.sqlite import stream as sqlite_stream
from datasync.syncbase import registry, subscription
from tests.faults.workloads.workload import Workload

#: Seconds after which an event is given up in a hurried workload: short against a stuck consumer, or long.
HURRIED_ABANDON = (0.04, 0.25)
#: The same in the others, where somebody does not answer, and where everybody does.
ABANDON, PATIENT_ABANDON = 0.5, 10.0


class Times(NamedTuple):
    """What the records and the checkers need to know of them."""

    abandon: float
    failure_backoff: tuple[float, float]
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
    wanted = _hurried(chance) if workload.hurried else _natural()
    wanted.append((subscription, "ABANDON_TIMEOUT", abandon))
    before = [(module, name, getattr(module, name)) for module, name, _ in wanted]
    try:
        for module, name, value in wanted:
            setattr(module, name, value)
        yield Times(abandon, subscription.FAILURE_BACKOFF, subscription.MAX_PENDING)
    finally:
        for module, name, value in before:
            setattr(module, name, value)


def _natural() -> list[tuple[Any, str, Any]]:
    return [
        (reader, "RETRY_BACKOFF", (0.1, 1.0)),
        (subscription, "FAILURE_BACKOFF", (0.05, 0.5)),
    ]


def _hurried(chance: random.Random) -> list[tuple[Any, str, Any]]:
    batch = chance.choice((1, 5, 1000))
    return [
        (reader, "RETRY_BACKOFF", (0.001, 0.02)),
        (reader, "GOOD_STREAM", 0.01),
        (reader, "ANCHOR_PATIENCE", 0.3),
        (memory, "IDLE", 0.02),
        (sqlite_stream, "IDLE", 0.02),
        (subscription, "FAILURE_BACKOFF", (0.002, 0.03)),
        (subscription, "FULL_QUEUE_BACKOFF", (0.001, 0.01)),
        (subscription, "DEFAULT_NOTIF_TIMEOUT", chance.choice((0.02, 0.1))),
        (subscription, "MAX_PENDING", chance.choice((10, 60, 10_000))),
        (subscription, "MAX_BATCH", batch),
        (registry, "MAX_BATCH", batch),
    ]
