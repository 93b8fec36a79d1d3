"""Finalizers of users that the collector runs in the midst of our own work: what they call must not wait for it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import Queue
from typing import Any

import pytest

from datasync.grpcsync import Client, Server
from tests.conftest import PATIENT
from tests.grpcsync.support import Subscriber
from tests.support.registries import text


def ends(lock: Any, act: Callable[[], object]) -> bool:
    """Whether *act* returns in a thread that holds *lock*, where the collector may run it at any allocation."""

    def run() -> None:
        with lock:
            act()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(PATIENT)
    return not thread.is_alive()


@pytest.mark.parametrize("call", ["put", "delete", "resync", "status"])
def test_c15_a_finalizer_may_use_a_client_that_is_at_work(client: Client, subscriber: Subscriber, call: str) -> None:
    made: list[Any] = []
    calls: dict[str, Callable[[], object]] = {
        "put": lambda: client.put_async("k/a", text("1")),
        "delete": lambda: client.delete_async("k/a"),
        "resync": lambda: client.resync_async({}),
        "status": client.status,
    }
    for lock in (client._queue.lock, client._lock):
        assert ends(lock, lambda: made.append(calls[call]()))
    # and what it sent is answered like the rest
    for future in made if call != "status" else ():
        future.result(PATIENT)


def test_c15_a_finalizer_may_end_a_subscription_and_an_adapter_that_are_at_work(server: Server) -> None:
    adapter, events = server.adapter, Queue[Any]()
    locks = {
        "the adapter": lambda _: adapter._lock,
        "its sources": lambda _: adapter._sources._lock,
        "the subscription": lambda registration: registration._lock,
    }
    for number, lock in enumerate(locks.values()):
        registration = adapter.watch(f"agent-{number}", events, events, "k/")
        assert ends(lock(registration), registration.close)
        assert f"agent-{number}" not in adapter.registry.subscriptions
        assert ends(lock(registration), adapter.status)
    assert ends(adapter._lock, adapter.close)
