"""^C at any step of a lock: no place is left that somebody renews."""

from __future__ import annotations

import sys
import threading
from contextlib import suppress

import pytest

from datasync.keyval import DeleteOp, Lock
from datasync.keyval.locks.place import Place
from datasync.keyval.memory import MemoryStore
from tests.conftest import PATIENT, wait_until
from tests.support.interrupts import Interrupt
from tests.support.stores import state

ACQUIRE = (
    Lock.acquire,
    Lock._acquire,
    Lock._begin,
    Lock._stand,
    Lock._stand_once,
    Lock._is_free,
    Place.__init__,
    Place.enter,
    Place.wait_turn,
)
ENTER = (*ACQUIRE[1:], Lock.__enter__)
#: Without ``_give_up`` itself: what a second ^C leaves may be renewed until the process ends.
RELEASE = (Lock.release, Lock._take_from_locked, Place.leave)


def renewed() -> bool:
    """Whether a thread renews a lease."""
    return any(thread.name.startswith("datasync-keyval-lock") for thread in threading.enumerate())


@pytest.mark.skipif(sys.getprofile() is not None, reason="a profiler runs")
@pytest.mark.parametrize("what", ["acquire", "with", "release"])
def test_c15_an_interrupt_at_any_step_of_a_lock_leaves_nothing_but_a_key_that_expires(what: str) -> None:
    count = 0
    while True:
        with MemoryStore() as store:
            lock = store.lock("locks/one", ttl=60.0)
            functions = {"acquire": ACQUIRE, "with": ENTER, "release": RELEASE}[what]
            if what == "release":
                lock.acquire()
            # when ^C comes at the step number *count*
            with suppress(KeyboardInterrupt), Interrupt(functions, count) as interrupt:
                if what == "acquire":
                    lock.acquire()
                elif what == "with":
                    lock.__enter__()
                else:
                    lock.release()
            if not interrupt.raised:
                lock.release()
                break
            if what == "release" and lock.is_acquired:
                lock.release()  # ^C came before it was taken
            # then nobody renews a lease, so that what is left expires
            wait_until(lambda: not renewed(), f"no lease is renewed after step {count}")
            assert not lock.is_acquired
            # and the object can be used again
            store.commit([DeleteOp(key) for key in state(store)])
            assert lock.acquire(timeout=PATIENT)
            lock.release()
        count += 1
    assert count > 5
