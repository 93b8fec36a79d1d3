"""Locks, semaphores and elections over every store that has leases and conditions; C15-C17, C23."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from datasync.errors import ClosedError, ForkedError, InvalidArgumentError, NotReadyError
from datasync.keyval import Capability, DeleteOp, Lock, PutOp, Store
from datasync.runtime import boot_clock
from tests.conformance.conftest import NewStore
from tests.conftest import PATIENT, wait_until
from tests.support.lock_client import Hold, violations
from tests.support.stores import state

pytestmark = pytest.mark.needs(Capability.LEASE, Capability.CAS, Capability.REVISION)

NAME = "locks/one"
#: Seconds that nothing in a test reaches, unless it waits for the end of a lease.
LONG = 60.0


def contenders(store: Store, name: str = NAME) -> list[str]:
    return sorted(state(store, f"{name}/"))


def revision(store: Store) -> int:
    return store.scan("no key begins like this", keys_only=True).revision


class Acquiring:
    """``lock.acquire`` in a thread."""

    def __init__(self, lock: Lock, **how: Any) -> None:
        self.outcome: Any = None
        self._thread = threading.Thread(target=self._acquire, args=(lock, how), name=f"acquiring {lock.name}")
        self._thread.start()

    @property
    def waits(self) -> bool:
        return self._thread.is_alive()

    def wait(self) -> Any:
        self._thread.join(PATIENT)
        assert not self.waits, "it still waits"
        return self.outcome

    def _acquire(self, lock: Lock, how: dict[str, Any]) -> None:
        try:
            self.outcome = lock.acquire(**how)
        except Exception as error:
            self.outcome = error


@pytest.fixture
def waiting(store: Store) -> Iterator[Callable[..., Acquiring]]:
    """``waiting(lock)``: an acquisition in a thread, once its place is in the line. Cancelled at the end."""
    begun: list[tuple[Lock, Acquiring]] = []

    def waiting(lock: Lock, **how: Any) -> Acquiring:
        before = len(contenders(store, lock.name))
        begun.append((lock, Acquiring(lock, **how)))
        wait_until(lambda: len(contenders(store, lock.name)) == before + 1, "it stands in the line")
        return begun[-1][1]

    yield waiting
    for lock, acquiring in begun:
        lock.cancel()
        acquiring.wait()


# Acquiring and releasing


def test_of_two_handles_one_holds_the_lock_and_the_token_grows(store: Store, new_store: NewStore) -> None:
    # given two clients of one lock
    one, two = store.lock(NAME, LONG), new_store().lock(NAME, LONG)
    assert (one.is_acquired, one.token, one.lost.is_set()) == (False, 0, False)
    # when one holds it / then the other one does not
    assert one.acquire()
    assert one.is_acquired
    assert two.acquire(timeout=0.2) is False
    assert two.acquire(blocking=False) is False
    assert not two.is_acquired
    assert contenders(store) == [one.key]
    # when it is released / then the other one can have it, with a greater token
    assert one.release() is True
    assert one.release() is False
    assert not one.is_acquired
    assert not one.lost.is_set()
    with two:
        assert two.is_acquired
        assert two.token > one.token > 0
    assert not two.is_acquired
    assert contenders(store) == []


def test_a_lock_goes_to_those_that_wait_in_the_order_of_their_arrival(
    store: Store, new_store: NewStore, waiting: Callable[..., Acquiring]
) -> None:
    # given a holder, and four that wait
    held = store.lock(NAME, LONG, identifier="first")
    held.acquire()
    locks = [new_store().lock(NAME, LONG, identifier=f"waiter {number}") for number in range(4)]
    acquiring = [waiting(lock) for lock in locks]
    assert held.contenders() == ["first", "waiter 0", "waiter 1", "waiter 2", "waiter 3"]
    # when each releases as soon as it holds the lock / then they hold it in their order
    tokens = [held.token]
    for lock, one in zip(locks, acquiring, strict=True):
        assert one.waits
        held.release()
        assert one.wait() is True
        tokens.append(lock.token)
        held = lock
    held.release()
    assert tokens == sorted(set(tokens))
    assert contenders(store) == []


def test_a_release_wakes_the_next_one_only(
    store: Store, new_store: NewStore, waiting: Callable[..., Acquiring], monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a holder, and three that wait, whose looks at the line are counted
    held = store.lock(NAME, LONG)
    held.acquire()
    stores = [new_store() for _ in range(3)]
    looks = [0] * 3

    def counting(number: int) -> Callable[[str], Any]:
        line = stores[number].line

        def counted(prefix: str) -> Any:
            looks[number] += 1
            return line(prefix)

        return counted

    for number in range(3):
        monkeypatch.setattr(stores[number], "line", counting(number))
    locks = [one.lock(NAME, LONG) for one in stores]
    acquiring = [waiting(lock) for lock in locks]
    wait_until(lambda: looks == [1, 1, 1], "each has looked once")
    # when the lock is released / then the next one looks again, and no other
    held.release()
    assert acquiring[0].wait() is True
    assert looks[1:] == [1, 1]
    locks[0].release()
    assert acquiring[1].wait() is True
    assert looks[2] == 1
    locks[1].release()
    assert acquiring[2].wait() is True
    locks[2].release()


def test_an_attempt_that_does_not_block_writes_nothing(store: Store, new_store: NewStore) -> None:
    one, two = store.lock(NAME, LONG), new_store().lock(NAME, LONG)
    assert one.acquire(blocking=False)
    before = revision(store)
    assert two.acquire(blocking=False) is False
    assert two.acquire(timeout=0) is False
    assert revision(store) == before
    one.release()
    assert two.acquire(timeout=0)
    two.release()


def test_one_that_gives_up_lets_those_behind_it_pass(
    store: Store, new_store: NewStore, waiting: Callable[..., Acquiring]
) -> None:
    # given a holder, one that waits for a while, and one that waits behind it
    held, short, long = (new_store().lock(NAME, LONG) for _ in range(3))
    held.acquire()
    leaving = waiting(short)
    staying = waiting(long)
    # when the first one gives up / then its place is gone, and the one behind it gets the lock
    short.cancel()
    assert leaving.wait() is False
    assert len(contenders(store)) == 2
    assert staying.waits
    held.release()
    assert staying.wait() is True
    long.release()
    # and a cancelled lock can be acquired again
    assert short.acquire()
    short.release()
    assert contenders(store) == []


def test_threads_with_one_object_exclude_each_other(store: Store) -> None:
    # given an object that several threads use, and a second one
    lock, inside, most = store.lock(NAME, LONG), 0, 0
    noted: list[Hold] = []

    def work() -> None:
        nonlocal inside, most
        for _ in range(3):
            with lock:
                inside += 1
                most = max(most, inside)
                noted.append(Hold(lock.token, time.monotonic(), time.monotonic()))
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENT)
    assert most == 1
    assert len(noted) == 12
    assert violations(noted) == []
    # and one that waits in vain for another thread says so
    lock.acquire()
    assert lock.acquire(timeout=0.1) is False
    assert lock.acquire(blocking=False) is False
    lock.release()


def test_handles_in_many_threads_exclude_each_other(store: Store, new_store: NewStore) -> None:
    # given handles in threads of their own
    locks = [new_store().lock(NAME, LONG) for _ in range(3)]
    noted: list[Hold] = []

    def work(lock: Lock) -> None:
        for _ in range(4):
            with lock:
                begin = time.monotonic()
                threading.Event().wait(0.001)
                assert lock.is_acquired
                noted.append(Hold(lock.token, begin, time.monotonic()))

    threads = [threading.Thread(target=work, args=(lock,)) for lock in locks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENT)
    # then no two held it at once
    assert len(noted) == 12
    assert violations(noted) == []
    assert contenders(store) == []


def test_locks_have_nothing_to_do_with_other_keys_and_names(store: Store, new_store: NewStore) -> None:
    # given keys under the name that are no contenders, and locks whose names begin alike
    store.commit([PutOp(f"{NAME}/config", b""), PutOp(f"{NAME}", b""), PutOp(f"{NAME}/UPPER", b"")])
    names = [NAME, f"{NAME}/two", f"{NAME}2", "locks"]
    locks = [new_store().lock(name, LONG) for name in names]
    # then each can be held at the same time
    for lock in locks:
        assert lock.acquire(timeout=PATIENT)
    assert all(lock.is_acquired for lock in locks)
    assert len(locks[0].contenders()) == 1
    for lock in locks:
        lock.release()
    assert set(state(store)) == {f"{NAME}/config", NAME, f"{NAME}/UPPER"}


# Semaphores


def test_a_semaphore_is_held_by_as_many_as_it_has_places(
    store: Store, new_store: NewStore, waiting: Callable[..., Acquiring]
) -> None:
    # given a semaphore of two, which is held by two
    locks = [new_store().lock(NAME, LONG, n=2) for _ in range(4)]
    assert locks[0].acquire(blocking=False)
    assert locks[1].acquire(blocking=False)
    assert locks[2].acquire(blocking=False) is False
    # when two more wait, and any one of the holders releases / then the first that waits gets its place
    third, fourth = waiting(locks[2]), waiting(locks[3])
    locks[1].release()
    assert third.wait() is True
    assert fourth.waits
    locks[0].release()
    assert fourth.wait() is True
    assert locks[3].token > locks[2].token > locks[1].token
    locks[2].release()
    locks[3].release()
    assert contenders(store) == []


def test_c16_clients_that_do_not_agree_on_the_size_are_told(store: Store, new_store: NewStore) -> None:
    one, other = store.lock(NAME, LONG), new_store().lock(NAME, LONG, n=3)
    one.acquire()
    for attempt in (other.acquire, lambda: other.acquire(blocking=False), other.contenders):
        with pytest.raises(InvalidArgumentError, match="n=1"):
            attempt()
    assert contenders(store) == [one.key]
    one.release()
    other.acquire()
    with pytest.raises(InvalidArgumentError, match="n=3"):
        one.acquire()
    other.release()


# Losing a lock


@pytest.mark.parametrize("how", ["deleted", "overwritten"])
def test_c23_a_holder_whose_key_is_taken_away_knows_it_and_leaves_nothing(
    store: Store, new_store: NewStore, waiting: Callable[..., Acquiring], how: str
) -> None:
    # given a holder whose lease is renewed twice a second, and one that waits
    told = threading.Event()
    lock, next_one = store.lock(NAME, 1.5, on_lost=told.set), new_store().lock(NAME, LONG)
    lock.acquire()
    lost, token = lock.lost, lock.token
    following = waiting(next_one)
    # when a stranger takes its key away
    store.commit([DeleteOp(lock.key) if how == "deleted" else PutOp(lock.key, b"stranger")])
    # then it knows soon, and is told once, and the other one holds the lock
    assert lost.wait(PATIENT)
    assert told.wait(PATIENT)
    assert not lock.is_acquired
    assert following.wait() is True
    assert next_one.token > token == lock.token
    assert lock.release() is False
    # and nothing is left of it; it can have the lock again, with an event and a token of its own
    next_one.release()
    wait_until(lambda: store.line(f"{NAME}/").contenders == (), "nobody is in the line")
    assert lock.acquire()
    assert lock.lost is not lost
    assert not lock.lost.is_set()
    assert lost.is_set()
    assert lock.token > next_one.token
    lock.release()


def test_c15_a_holder_that_was_suspended_knows_at_the_first_look(
    store: Store, new_store: NewStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a holder, whose own clock says that its lease may have ended while no thread ran
    lock = new_store().lock(NAME, LONG)
    lock.acquire()
    now = boot_clock.now
    monkeypatch.setattr(boot_clock, "now", lambda: now() + LONG)
    # then the first look says so, and what is lost stays lost
    assert lock.lost.is_set()
    assert not lock.is_acquired
    monkeypatch.setattr(boot_clock, "now", now)
    assert lock.lost.is_set()
    lock.lost.clear()
    assert lock.lost.is_set()
    assert not lock.is_acquired
    # and a lock that was lost, and not released, can be acquired again
    assert lock.acquire()
    lock.release()


def test_c15_the_event_is_set_before_the_lease_can_have_ended(
    store: Store, new_store: NewStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a holder, and the time before it asked for its lease
    ttl, now = LONG, boot_clock.now
    lock = new_store().lock(NAME, ttl)
    before = now()
    lock.acquire()
    # when less than the lease's life has passed, by our clock, since then / then it is set already
    monkeypatch.setattr(boot_clock, "now", lambda: before + ttl * 0.8)
    assert not lock.lost.is_set()
    monkeypatch.setattr(boot_clock, "now", lambda: before + ttl * 0.95)
    assert lock.lost.is_set()
    monkeypatch.setattr(boot_clock, "now", now)
    lock.release()


def test_c15_waiting_for_the_loss_ends_in_time_and_with_the_loss(store: Store, new_store: NewStore) -> None:
    lock = new_store().lock(NAME, LONG)
    assert lock.lost.wait(0.01) is False
    lock.acquire()
    lost = lock.lost
    assert lost.wait(0) is False
    assert lost.wait(0.05) is False
    woken: list[bool] = []
    waiting = threading.Thread(target=lambda: woken.append(lost.wait()))
    waiting.start()
    store.commit([DeleteOp("locks/", prefix=True)])
    # the renewal, which would find out, is due in 20 s: the release of what is lost must not wait for it
    assert lock.release() is True
    waiting.join(0.3)
    assert waiting.is_alive()  # what was released is not lost
    lost.set()
    waiting.join(PATIENT)
    assert woken == [True]


def test_c17_the_place_of_one_that_waits_is_taken_again_when_it_is_removed(
    store: Store, new_store: NewStore, waiting: Callable[..., Acquiring]
) -> None:
    # given a holder, and one that waits
    held, lock = store.lock(NAME, LONG), new_store().lock(NAME, 1.5)
    held.acquire()
    one = waiting(lock)
    (place,) = set(contenders(store)) - {held.key}
    # when its place is removed / then it takes another one
    store.commit([DeleteOp(place)])
    wait_until(lambda: len(contenders(store)) == 2, "it stands again")
    assert place not in contenders(store)
    held.release()
    assert one.wait() is True
    lock.release()


def test_c17_one_whose_place_was_removed_does_not_take_the_lock_for_free(
    store: Store, new_store: NewStore, waiting: Callable[..., Acquiring]
) -> None:
    # given a holder, and one that waits and would not find out for a long time
    held, lock = store.lock(NAME, LONG), new_store().lock(NAME, LONG)
    held.acquire()
    one = waiting(lock)
    removed = contenders(store)
    # when both places are removed at once / then it stands again before it holds the lock
    store.commit([DeleteOp(f"{NAME}/", prefix=True)])
    assert one.wait() is True
    assert contenders(store) == [lock.key]
    assert lock.key not in removed
    lock.release()
    held.release()


def test_c17_a_lease_that_ends_before_its_key_was_put_costs_a_second_attempt_only(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a process that is suspended between its two requests: the first lease is over at once
    grant, granted = store.grant, []

    def late(ttl: float) -> Any:
        granted.append(grant(ttl))
        if len(granted) == 1:
            granted[0].end()
        return granted[-1]

    monkeypatch.setattr(store, "grant", late)
    with store.lock(NAME, LONG) as lock:
        assert lock.is_acquired
        assert contenders(store) == [lock.key]


def test_c15_a_renewal_that_ends_after_the_release_changes_nothing(
    store: Store, new_store: NewStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a holder whose renewal, which is due at once, gets its response late
    lock = new_store().lock(NAME, 1.5)
    lock.acquire()
    lost, place = lock.lost, lock._place
    assert place is not None
    renew, begun = place._lease.renew, threading.Event()

    def late(timeout: float) -> float:
        seconds = renew(timeout)
        begun.set()
        wait_until(lambda: place._left, "it is released")
        return seconds

    monkeypatch.setattr(place._lease, "renew", late)
    assert begun.wait(PATIENT)
    # when it is released meanwhile / then it is not lost, however much time passes
    assert lock.release() is True
    now = boot_clock.now
    monkeypatch.setattr(boot_clock, "now", lambda: now() + LONG)
    assert not lost.is_set()


def test_c15_an_interrupted_acquisition_leaves_nothing(store: Store, new_store: NewStore) -> None:
    # given a lock that is held, and one that waits in the main thread
    held, lock = store.lock(NAME, LONG), new_store().lock(NAME, LONG)
    held.acquire()

    def interrupt() -> None:
        wait_until(lambda: len(contenders(store)) == 2, "it waits")
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    # when the user interrupts it / then its place is gone
    with pytest.raises(KeyboardInterrupt):
        lock.acquire()
    thread.join(PATIENT)
    assert contenders(store) == [held.key]
    held.release()
    assert lock.acquire(timeout=PATIENT)
    lock.release()


# Close and fork


def test_c15_close_releases_what_is_held_and_ends_what_waits(
    store: Store, new_store: NewStore, waiting: Callable[..., Acquiring]
) -> None:
    # given a store that holds two locks and waits for a third, and another client that waits
    closing, lock = new_store(), store.lock(NAME, LONG)
    mine, other = closing.lock(NAME, LONG), closing.lock("locks/other", LONG)
    mine.acquire()
    other.acquire()
    third = store.lock("locks/third", LONG)
    third.acquire()
    in_vain = waiting(closing.lock("locks/third", LONG))
    following = waiting(lock)
    # when it is closed / then the other one holds the lock at once, and all is gone
    closing.close()
    assert following.wait() is True
    assert isinstance(in_vain.wait(), ClosedError)
    assert not mine.is_acquired
    assert mine.lost.is_set()
    assert other.lost.is_set()
    assert contenders(store, "locks/other") == []
    assert contenders(store, "locks/third") == [third.key]
    # and releasing it is no error, while acquiring it is
    assert mine.release() is False
    with pytest.raises(ClosedError):
        mine.acquire()
    with pytest.raises(ClosedError):
        mine.contenders()
    lock.release()
    third.release()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("step", ["grant", "take", "taken"])
def test_c15_a_close_that_comes_while_a_place_is_being_taken_leaves_nothing(
    store: Store, new_store: NewStore, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a store that another thread closes while a lock is being acquired
    closing = new_store()
    grant = closing.grant
    threads: list[threading.Thread] = []

    def close() -> None:
        threads.append(threading.Thread(target=closing.close, name="closing"))
        threads[0].start()
        wait_until(lambda: closing.places._closed, "the close has begun")

    def granted(ttl: float) -> Any:
        if step == "grant":
            close()
        lease = grant(ttl)
        take = lease.take

        def taken(key: str, value: bytes) -> int:
            if step == "take":
                close()
            revision = take(key, value)
            if step == "taken":
                close()
            return revision

        monkeypatch.setattr(lease, "take", taken)
        return lease

    monkeypatch.setattr(closing, "grant", granted)
    # when it is acquired / then the caller is told, and no key is left
    with pytest.raises(ClosedError):
        closing.lock(NAME, LONG).acquire()
    threads[0].join(PATIENT)
    wait_until(lambda: not contenders(store), "nothing is left")


def test_c15_i17_a_child_holds_nothing_and_takes_nothing_away(store: Store) -> None:
    # given a lock that is held
    lock = store.lock(NAME, LONG)
    with lock:
        # when the process forks, and the child looks, tries and leaves the block
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            os._exit(_outcome_in_child(lock))
        _, status = os.waitpid(child, 0)
        # then the child held nothing, and the parent still does
        assert os.waitstatus_to_exitcode(status) == 0
        assert lock.is_acquired
        assert not lock.lost.is_set()
        assert contenders(store) == [lock.key]
    assert contenders(store) == []


def _outcome_in_child(lock: Lock) -> int:
    try:
        if lock.is_acquired or not lock.lost.is_set() or not lock.lost.wait(5):
            return 1
        for call in (lock.acquire, lock.contenders):
            try:
                call()
            except ForkedError:
                continue
            return 2
        lock.cancel()
        return 3 if lock.release() else 0
    except BaseException:
        return 4


# Elections


def test_a_candidate_leads_until_it_resigns(store: Store, new_store: NewStore) -> None:
    # given a leader
    with store.campaign("election", b"one") as first:
        assert first.is_leader
        assert state(store, "election/") == {first.key: b"one"}
        # when another one stands / then it is not elected
        with pytest.raises(NotReadyError, match="election"):
            new_store().campaign("election", b"two", timeout=0.2)
        assert len(contenders(store, "election")) == 1
    # when it has resigned / then another one leads, with a greater token
    assert not first.is_leader
    assert not first.lost.is_set()
    second = new_store().campaign("election", b"two", timeout=PATIENT)
    assert second.token == second.revision > first.token
    second.resign()
    second.resign()
    assert contenders(store, "election") == []


def test_a_leader_that_loses_its_place_is_told(store: Store, new_store: NewStore) -> None:
    told = threading.Event()
    leadership = new_store().campaign("election", on_lost=told.set, ttl=1.5)
    store.commit([DeleteOp(leadership.key)])
    assert leadership.lost.wait(PATIENT)
    assert told.wait(PATIENT)
    assert not leadership.is_leader
    leadership.resign()


def test_a_lock_and_an_election_of_one_name_are_one(store: Store, new_store: NewStore) -> None:
    with store.campaign(NAME, b"leader", timeout=PATIENT):
        lock = new_store().lock(NAME, LONG)
        assert lock.acquire(blocking=False) is False
        assert lock.contenders() == ["leader"]


# Bad input


def test_c16_what_makes_no_lock_is_an_error(store: Store) -> None:
    calls: list[Callable[[], object]] = [
        lambda: store.lock(""),
        lambda: store.lock(7),  # type: ignore[arg-type]
        lambda: store.lock("\ud800"),
        *(lambda ttl=ttl: store.lock("a", ttl) for ttl in (0, -1, float("nan"), float("inf"), True, "2")),  # type: ignore[misc]
        *(lambda n=n: store.lock("a", n=n) for n in (0, -1, 1.5, True, None)),  # type: ignore[misc]
        lambda: store.lock("a", identifier=b"bytes"),  # type: ignore[arg-type]
        lambda: store.campaign(""),
        lambda: store.campaign("a", "text"),  # type: ignore[arg-type]
        lambda: store.campaign("a", ttl=0),
        *(lambda timeout=timeout: store.lock("a").acquire(timeout=timeout) for timeout in (-1, float("nan"), "1")),  # type: ignore[misc]
    ]
    for call in calls:
        with pytest.raises(InvalidArgumentError):
            call()
    assert state(store) == {}


def test_a_client_with_another_size_disturbs_nobody_in_the_line(
    store: Store, new_store: NewStore, waiting: Callable[..., Acquiring]
) -> None:
    # given a semaphore of two that is full, and one that waits
    held = [store.lock(NAME, ttl=LONG, n=2) for _ in range(2)]
    assert all(lock.acquire() for lock in held)
    third = waiting(store.lock(NAME, ttl=LONG, n=2))
    # when another client takes it for a semaphore of three / then that one is told, and nobody else
    with pytest.raises(InvalidArgumentError, match="n=2"):
        new_store().lock(NAME, ttl=LONG, n=3).acquire(timeout=1)
    held[0].release()
    assert third.wait() is True
    held[1].release()


def test_a_thread_that_lost_the_lock_never_takes_the_lock_of_another_thread_for_its_own(store: Store) -> None:
    # given two threads that share one object, and a lock that was lost
    lock = store.lock(NAME, ttl=3)
    lock.acquire()
    other = Acquiring(lock, timeout=PATIENT)
    store.commit([DeleteOp(lock.key)])
    assert lock.lost.wait(PATIENT)
    # then the first thread sees that until it releases
    lost, token = lock.lost, lock.token
    assert not other.outcome
    assert (lock.lost, lock.token, lock.is_acquired) == (lost, token, False)
    assert lock.release() is False
    # and only then the other one holds it
    assert other.wait() is True
    assert lock.token > token
    lock.release()
