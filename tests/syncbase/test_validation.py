"""The checks of what ``watch`` is given."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from queue import LifoQueue, Queue, SimpleQueue
from typing import Any

import pytest

from datasync.errors import InvalidArgumentError
from datasync.syncbase.registry import Registry
from tests.conftest import take


class LoopQueue:
    """Stands for ``asyncio.Queue``, which this project does not import."""

    def put_nowait(self, item: object) -> None:
        raise AssertionError("an event was put on a queue that no thread may use")


LoopQueue.__module__ = "asyncio.queues"


def of_another_process() -> Any:
    queue: Any = multiprocessing.get_context("spawn").Queue()
    queue.close()
    queue.join_thread()
    return queue


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (LoopQueue, "asyncio.queues.LoopQueue"),
        (of_another_process, "multiprocessing.queues.Queue"),
        (lambda: Queue, "the class Queue"),
        (lambda: SimpleQueue, "the class SimpleQueue"),
        (list, "builtins.list"),
    ],
)
def test_c16_a_queue_that_threads_cannot_use_is_refused_with_one_that_they_can(
    make: Callable[[], Any], said: str
) -> None:
    queue = make()
    with Registry() as registry:
        for queues in ((queue, None), (None, queue), (queue, queue)):
            with pytest.raises(InvalidArgumentError, match=r"'agent' must be a queue\.Queue\(\) .* not " + said):
                registry.watch("agent", *queues, "")
        # then the name is still free
        registry.watch("agent", Queue(), None, "")


@pytest.mark.parametrize("kind", [Queue, SimpleQueue, LifoQueue])
def test_c20_every_queue_of_the_standard_library_s_threads_will_do(kind: Any) -> None:
    queue: Any = kind()
    with Registry() as registry:
        registry.watch("agent", queue, queue, "")
        future = registry.request_resync("agent")
        take(queue).done()
        assert future.result().revision == 0
