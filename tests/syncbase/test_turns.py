"""The end of a put: what comes in that moment is not forgotten (C3, C8, C11); and light subscriptions (C2, C7)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from queue import Empty, Queue, SimpleQueue
from typing import Any

import pytest

from datasync.events import Op, ResyncReason
from datasync.syncbase import delivery
from datasync.syncbase.change import ChangeBytes, KeyVal
from datasync.syncbase.registry import Registry
from tests.conftest import PATIENT, take, wait_until
from tests.support.registries import changes, removed, told


class Interrupted(Queue[Any]):
    """A queue whose first put has just been done when *act* runs in another thread."""

    def __init__(self, act: Callable[[], object]) -> None:
        super().__init__()
        self._act: Callable[[], object] | None = act

    def put_nowait(self, item: Any) -> None:
        super().put_nowait(item)
        act, self._act = self._act, None
        if act is not None:
            thread = threading.Thread(target=act)
            thread.start()
            thread.join(PATIENT)


def test_c3_a_change_that_comes_while_a_put_ends_is_put_by_the_thread_that_puts(registry: Registry) -> None:
    # given a change of another thread, which comes when the first one was put, and finds the turn taken
    queue = Interrupted(lambda: registry.submit_changes(changes({"b": "2"})))
    registry.watch("agent", queue, queue, "", in_flight=2)
    # when the first one is submitted / then both are in the queue, in order
    registry.submit_changes(changes({"a": "1"}))
    assert [told(queue.get_nowait()) for _ in range(2)] == [[("a", "1", None)], [("b", "2", None)]]


def test_c3_a_change_that_waits_for_an_answer_given_while_the_put_ends_is_put(registry: Registry) -> None:
    # given one event at a time, and a consumer that answers it before its put has ended, with the next one waiting
    def answer() -> None:
        registry.submit_changes(changes({"b": "2"}))
        queue.get_nowait().done()

    queue = Interrupted(answer)
    registry.watch("agent", queue, queue, "")
    # when the first one is submitted / then the second one is in the queue
    registry.submit_changes(changes({"a": "1"})).result(PATIENT)
    assert told(queue.get_nowait()) == [("b", "2", None)]


def test_c2_a_resync_that_becomes_due_while_a_put_ends_is_put(registry: Registry) -> None:
    # given a resync that is asked for, and the answer to the event before it, while the put of that one ends
    def ask() -> None:
        registry.request_resync("agent")
        queue.get_nowait().done()

    queue = Interrupted(ask)
    registry.watch("agent", queue, queue, "")
    # when it is submitted / then the RESYNC is in the queue
    registry.submit_changes(changes({"a": "1"})).result(PATIENT)
    assert queue.get_nowait().reason is ResyncReason.REQUESTED


def test_c11_a_close_that_awaits_the_end_of_a_put_returns_as_soon_as_it_ends(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a close that would otherwise wait for a minute
    monkeypatch.setattr(delivery, "CLOSE_TIMEOUT", 60.0)
    put, go_on = threading.Event(), threading.Event()

    class Held(Queue[Any]):
        def put_nowait(self, item: Any) -> None:
            super().put_nowait(item)
            put.set()
            go_on.wait(PATIENT)

    queue = Held()
    registration = registry.watch("agent", queue, queue, "")
    turn = registry.subscriptions["agent"]._turn
    with ThreadPoolExecutor(2) as pool:
        pool.submit(registry.submit_changes, changes({"a": "1"}))
        assert put.wait(PATIENT)
        # when it comes in the middle of a put, which then ends / then it returns
        closing = pool.submit(registration.close)
        wait_until(lambda: turn.awaited, "the close awaits the end of the put")
        go_on.set()
        closing.result(PATIENT)


def test_c3_two_threads_that_submit_and_one_that_answers_lose_nothing(registry: Registry) -> None:
    # given a consumer that answers each event at once, often before its put has ended
    queue: SimpleQueue[Any] = SimpleQueue()
    registry.watch("agent", queue, queue, "")  # type: ignore[arg-type]
    count = 200
    seen: list[str] = []

    def consume() -> None:
        while len(seen) < 2 * count:
            event = take(queue)  # type: ignore[arg-type]
            seen.extend(change.key for change in event.get_changes())
            event.done()

    def submit(name: str) -> None:
        futures = [registry.submit_changes(changes({f"{name}/{number}": "v"})) for number in range(count)]
        for future in futures:
            future.result(PATIENT)

    # when both submit at once
    with ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(consume), pool.submit(submit, "a"), pool.submit(submit, "b")]:
            done.result(PATIENT)
    # then each change came once, those of each thread in their order
    for name in ("a", "b"):
        assert [key for key in seen if key.startswith(name)] == [f"{name}/{number}" for number in range(count)]


def test_c2_a_subscription_of_an_empty_state_gets_its_first_change_without_a_resync(registry: Registry) -> None:
    queue: Queue[Any] = Queue()
    registry.watch("agent", queue, queue, "a/")
    with pytest.raises(Empty):
        queue.get_nowait()
    registry.submit_changes(changes({"a/1": "1"}))
    assert told(take(queue)) == [("a/1", "1", None)]


def test_c7_what_a_new_subscription_misses_is_not_listed_for_another_new_one(registry: Registry) -> None:
    # given two subscriptions that have not missed anything so far
    queues = {name: Queue[Any]() for name in ("a", "b")}
    for name, queue in queues.items():
        registry.watch(name, queue, queue, "")
    registry.submit_changes({"k": ChangeBytes("k", b'"1"')})
    for queue in queues.values():
        take(queue).done()
    # when one of them rejects a delete that the other has accepted, and both get a RESYNC
    registry.submit_changes({"k": ChangeBytes("k", op=Op.DELETE)})
    take(queues["b"]).done()
    take(queues["a"]).done(ValueError("no"))
    for name in queues:
        registry.request_resync(name)
    # then only that one is notified
    assert {name: list(removed(take(queue))) for name, queue in queues.items()} == {"a": ["k"], "b": []}


def test_c16_a_resync_takes_no_pair_without_a_value(registry: Registry) -> None:
    with pytest.raises(ValueError, match="'k' has no value"):
        registry.submit_resync({"k": KeyVal("k", None)})
