"""Locks of several processes, which are killed and suspended; what they noted is judged afterwards. C15, C17, C23."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from datasync.keyval import Store
from tests.conftest import PATIENT, wait_until
from tests.keyval.locks.conftest import NAME, TTL, NewPeer
from tests.support.child_process import Peer, PeerGone
from tests.support.lock_client import Hold, holds, violations
from tests.support.stores import state
from tests.support.timing import at_most

#: Seconds for many turns on a busy machine.
LONG = 50.0


class Asking:
    """A question that is asked in a thread. Its answer, or the error, is what ``answer`` returns."""

    def __init__(self, peer: Peer, do: str, **more: Any) -> None:
        self._answer: Any = None
        self._thread = threading.Thread(target=self._ask, args=(peer, do, more), name=f"asking {do}")
        self._thread.start()

    @property
    def waits(self) -> bool:
        return self._thread.is_alive()

    def answer(self) -> Any:
        self._thread.join(PATIENT)
        assert not self._thread.is_alive(), "no answer"
        return self._answer

    def _ask(self, peer: Peer, do: str, more: dict[str, Any]) -> None:
        try:
            self._answer = peer.ask(do, **more)
        except PeerGone as error:
            self._answer = error


def contenders(store: Store) -> int:
    return len(state(store, f"{NAME}/"))


@pytest.mark.parametrize("size", [1, 2])
def test_no_more_processes_hold_a_lock_than_may(store: Store, new_peer: NewPeer, notes: Path, size: int) -> None:
    # given processes that want it again and again, one of which is killed in the middle
    peers = [new_peer(n=size) for _ in range(3)]
    victim = new_peer(n=size)
    for peer in (*peers, victim):
        peer.ask("rounds", number=6 if peer is not victim else 1000)
    wait_until(lambda: len(holds(notes)) > 4, "the lock is in use")
    victim.kill()
    # when they have ended / then at no time there were more, nobody got an error, and nothing is left in the store
    wait_until(lambda: all(peer.ask("outcome")["left"] == 0 for peer in peers), "all have had their turns", LONG)
    assert [peer.ask("outcome")["errors"] for peer in peers] == [0, 0, 0]
    noted = holds(notes)
    assert len(noted) >= 3 * 6
    assert violations(noted, size) == []
    wait_until(lambda: contenders(store) == 0, "nothing is left")


def test_the_lock_of_a_killed_process_is_free_when_its_lease_has_ended(
    store: Store, new_peer: NewPeer, notes: Path
) -> None:
    # given a holder, and a process that waits
    holder, waiter = new_peer(), new_peer()
    first = holder.ask("acquire")
    waiting = Asking(waiter, "acquire")
    wait_until(lambda: contenders(store) == 2, "it waits")
    # when the holder is killed / then the other one holds it, not before the lease has ended, and soon after
    killed = time.monotonic()
    holder.kill()
    second = waiting.answer()
    assert time.monotonic() - killed < at_most(TTL + 3)
    assert second["acquired"]
    assert second["token"] > first["token"]
    assert violations(holds(notes)) == []


def test_i17_a_holder_that_was_suspended_beyond_its_lease_knows_it_at_the_first_look(
    store: Store, new_peer: NewPeer, notes: Path
) -> None:
    # given a holder that is busy, and a process that waits
    holder, waiter = new_peer(), new_peer()
    first = holder.ask("acquire")
    busy = Asking(holder, "keep", seconds=TTL + 4)
    waiting = Asking(waiter, "acquire")
    wait_until(lambda: contenders(store) == 2, "it waits")
    # when the holder is suspended until the other one holds the lock
    holder.freeze()
    second = waiting.answer()
    assert second["held"]
    holder.thaw()
    # then its work did not go on for a moment: lost is set, and its token is the lower one
    told = busy.answer()
    assert told == {"held": False, "lost": True, "token": first["token"]}
    assert told["token"] < second["token"]
    assert waiter.ask("state")["held"]
    assert violations(holds(notes)) == []
    # and it can have the lock again, in its turn, with a token of its own
    again = Asking(holder, "acquire")
    wait_until(lambda: contenders(store) == 2, "it stands again")
    assert waiter.ask("release")["released"]
    third = again.answer()
    assert third["held"]
    assert third["token"] > second["token"]


def test_i17_a_waiting_process_that_was_suspended_stands_again_behind_the_others(
    store: Store, new_peer: NewPeer, notes: Path
) -> None:
    # given a holder and two that wait
    holder, early, late = new_peer(), new_peer(), new_peer()
    holder.ask("acquire")
    keeping = Asking(early, "acquire")
    wait_until(lambda: contenders(store) == 2, "the first waits")
    behind = Asking(late, "acquire")
    wait_until(lambda: contenders(store) == 3, "the second waits")
    # when the first one is suspended beyond its lease, and the holder releases
    early.freeze()
    wait_until(lambda: contenders(store) == 2, "its place has expired")
    holder.ask("release")
    # then the second one holds the lock, and the first one comes after it when it goes on
    second = behind.answer()
    early.thaw()
    wait_until(lambda: contenders(store) == 2, "it stands again")
    assert keeping.waits
    late.ask("release")
    third = keeping.answer()
    assert third["token"] > second["token"]
    assert violations(holds(notes)) == []


BROKEN: dict[str, tuple[list[Hold], int]] = {
    "two hold it": ([Hold(1, 0.0, 2.0), Hold(2, 1.0, 3.0)], 1),
    "an early one holds it long": ([Hold(1, 0.0, 9.0), Hold(2, 9.5, 9.6), Hold(3, 8.0, 8.5)], 1),
    "three hold a semaphore of two": ([Hold(1, 0.0, 5.0), Hold(2, 1.0, 5.0), Hold(3, 2.0, 5.0)], 2),
    "a token goes back": ([Hold(5, 0.0, 1.0), Hold(4, 2.0, 3.0)], 1),
}


@pytest.mark.parametrize("how", BROKEN)
def test_the_judge_finds(how: str) -> None:
    noted, size = BROKEN[how]
    assert violations(noted, size)
    fine: Callable[[], list[str]] = lambda: violations([Hold(1, 0.0, 1.0), Hold(2, 1.1, 3.0)])  # noqa: E731
    assert fine() == []
