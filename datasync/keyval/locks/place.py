"""A place in the line of a lock: a lease that a thread renews, and the key that it holds.

Each client that wants a lock puts a key of its own under the lock's name. The store orders these keys by the revision
of their creation: the first one holds the lock, and each of the others waits for the one before it only.

Source: etcd's ``concurrency.Mutex`` and ``Election`` use the same keys, so clients of both exclude each other.
"""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from datasync.errors import ClosedError, DatasyncError, InvalidArgumentError
from datasync.keyval.driver import Contender, Lease, StoreDriver, Stream
from datasync.keyval.locks.lost import POLL, Lost
from datasync.runtime import boot_clock
from datasync.runtime.logs import get_logger
from datasync.runtime.threads import Flag, ForkGuard, Worker

log = get_logger(__name__)

#: Renewals of a lease within its lifetime.
BEATS = 3
#: The part of its lifetime by which a lease counts as over before it can end, so that protected work can stop.
MARGIN = 0.1

_ID = re.compile(r"([0-9a-f]+)(?:-n([1-9][0-9]*))?")


def line_of(contenders: tuple[Contender, ...], name: str, size: int) -> list[Contender]:
    """Return the *contenders* of the lock *name*, without keys that are something else.

    Raises:
      InvalidArgumentError: They stand for a semaphore of another size.
    """
    matches = ((_ID.fullmatch(one.key[len(name) + 1 :]), one) for one in contenders)
    found = [(int(match[2] or 1), one) for match, one in matches if match is not None]
    if (
        found and (told := found[0][0]) != size
    ):  # who came first decides: a stranger at the end must not stop the others
        raise InvalidArgumentError(f"the lock {name!r} is used with n={told} by another client, here with n={size}")
    return [one for _, one in found]


class Place:
    """One place in the line of the lock *name*, from ``enter`` until it is left or lost.

    It is lost when its lease has ended, or may have ended by our clock, and when its key was deleted or overwritten.
    A lost place never returns. Nothing is in the store before ``enter``, so that its owner can note it first: then
    ^C leaves no place that nobody knows.

    Args:
      size: The number of places at the front of the line that hold the lock.
      ttl: Seconds after which the place of a dead process is deleted.
      on_lost: Called by the place's thread when it was lost after ``wait_turn`` returned True.

    Threads: any; one of its own, which renews the lease.
    Source: contract C15, C17, C23.
    """

    def __init__(
        self,
        store: StoreDriver,
        name: str,
        value: bytes,
        *,
        size: int = 1,
        ttl: float,
        on_lost: Callable[[], object] | None = None,
    ) -> None:
        self._store = store
        self._name = name
        self._value = value
        self._size = size
        self._ttl = ttl
        self._on_lost = on_lost
        self._guard = ForkGuard(f"the lock {name!r}")
        self._news = Flag()  # set when the thread that waits must look again
        self._cancelled = False
        # Guards the three below, so that a place is removed once, reported once, and not renewed after it was left.
        self._lock = threading.Lock()
        self._held = self._left = self._removed = False
        self.lost = Lost(self._guard)
        #: The key of this place; "" before ``enter``.
        self.key = ""
        #: The store's revision of the put, 0 if another client has put the key.
        self.token = 0
        self._begun = 0.0
        self._lease: Lease | None = None
        self._worker = Worker(f"keyval-lock-{name}", self._keep, wake=self._interrupt)
        self._entered = Flag()  # set when ``enter`` has ended

    def enter(self) -> None:
        """Stand in the line, at its end. Call it once.

        Raises:
          StoreError: The store could not be reached; nothing is left but a key that expires.
          ClosedError: The store is closed.
        """
        try:
            # First: a close that comes now waits, and what is put meanwhile is removed before the store ends.
            self._store.places.add(self)
            # Read before the request, so that our clock for the lease never runs behind the store's.
            self._begun = boot_clock.now()
            self._lease = lease = self._store.grant(self._ttl)
            self.key = f"{self._name}/{lease.id}" + (f"-n{self._size}" if self._size > 1 else "")
            self.token = lease.take(self.key, self._value)
            self._extend(self._begun)
            self._worker.start()
        except BaseException:
            with suppress(DatasyncError):
                self.leave()
            raise
        finally:
            self._entered.set()

    def wait_turn(self, deadline: float | None) -> bool:
        """Wait until the place is at the front. False when it is lost, cancelled, or *deadline* has passed.

        Args:
          deadline: A time of ``time.monotonic``; None waits for ever.

        Raises:
          InvalidArgumentError: Another client uses the name for a semaphore of another size.
          PermissionDenied: The line cannot be read. Other errors of the store are logged, and the line is read again.
        """
        failed = False
        while True:
            self._news.clear()
            ahead, revision = "", 0
            try:
                ahead, revision = self._look()
                failed = False
            except DatasyncError as error:
                if not error.retryable:
                    raise
                if not failed:
                    log.warning("the line of the lock %r could not be read: %s", self._name, error)
                failed = True
            if not (ahead or failed) and self._hold():
                return True
            left = math.inf if deadline is None else deadline - time.monotonic()
            if self.lost.is_set() or self._cancelled or left <= 0:
                return False
            if failed:
                self._news.wait(min(left, POLL))
            else:
                # Longer than a lease lives nothing stays as it is: look again even if the watch says nothing.
                with _Watch(self._store, ahead, revision, self._news):
                    self._news.wait(min(left, self._ttl + POLL))

    def cancel(self) -> None:
        """Let ``wait_turn`` return False."""
        self._cancelled = True
        self._news.set()

    def leave(self) -> None:
        """Give the place up, so that the next one holds the lock at once. May be called twice.

        Raises:
          StoreError: The key could not be removed; it is deleted when its lease ends, within the ``ttl``.
        """
        if self._guard.forked:
            return
        self.give_up()
        with self._lock:
            removed, self._removed = self._removed, True
        if not removed:
            self._worker.close()
            self._store.places.discard(self)
            if self._lease is not None:
                self._lease.end()

    def give_up(self) -> None:
        """Begin to leave, without waiting: the place is not renewed any more, and it is not reported as lost."""
        with self._lock:
            if self._left:
                return
            self._left = True
        if not self.lost.is_set():
            self.lost.extend(math.inf)  # what was given up is not lost
        self._worker.signal()

    def abandon(self) -> None:
        """Lose the place, because the store is about to close: the place's thread removes it."""
        self._cancelled = True
        self.lost.set()
        self._worker.signal()
        self._news.set()

    def wait_abandoned(self, timeout: float) -> None:
        until = time.monotonic() + timeout
        self._entered.wait(timeout)
        self._worker.close(max(until - time.monotonic(), 0.0))

    def _interrupt(self) -> None:
        if self._lease is not None:
            self._lease.interrupt()

    def _look(self) -> tuple[str, int]:
        """Return the prefix whose next change concerns this place, "" if it is at the front or lost; and a revision."""
        line = self._store.line(f"{self._name}/")
        found = line_of(line.contenders, self._name, self._size)
        ahead = [one for one in found if one.place < self.token]
        if not any(one.key == self.key and one.revision == self.token for one in found):
            self.lost.set()
        elif len(ahead) >= self._size:
            return ahead[-1].key if self._size == 1 else f"{self._name}/", line.revision
        return "", 0

    def _hold(self) -> bool:
        with self._lock:
            self._held = not (self._left or self.lost.is_set())
            return self._held

    def _end_quietly(self, lease: Lease) -> None:
        try:
            lease.end()
        except DatasyncError as error:
            log.debug("the key of the lock %r could not be removed: %s", self._name, error)

    def _extend(self, begun: float, seconds: float = math.inf) -> None:
        """Count on a lease that lives for *seconds* from *begun*, but never on more than its lifetime."""
        until = begun + min(seconds, self._ttl) - self._ttl * MARGIN
        self.lost.extend(until if self.lost.until == math.inf else max(self.lost.until, until))

    # The thread that renews the lease.

    def _keep(self, worker: Worker) -> None:
        lease = self._lease
        assert lease is not None  # since ``enter``, which starts this
        due = self._begun + self._ttl / BEATS
        while not (self._left or worker.stopping.is_set() or self.lost.is_set()):
            begun = boot_clock.now()
            # In short steps: a wait of the operating system does not count the time of a suspended machine.
            if (left := min(due, self.lost.until) - begun) > 0:
                worker.stopping.wait(min(left, POLL, self._ttl * MARGIN))
                continue
            due = begun + self._ttl / BEATS
            try:
                seconds = lease.renew(self.lost.until - begun)
            except ClosedError:
                break
            except DatasyncError as error:
                log.warning("the lease of the lock %r could not be renewed: %s", self._name, error)
                due = boot_clock.now() + min(POLL, self._ttl / BEATS)
                continue
            if not seconds:
                break
            # A proxy may tell how long the lease still lives, instead of renewing it.
            with self._lock:
                if not self._left:
                    self._extend(begun, seconds)
        with self._lock:
            if self._left:
                return
            self._left, self._removed, held = True, True, self._held
        self.lost.set()
        self._news.set()
        try:
            if held:
                if not worker.stopping.is_set():
                    log.warning("the lock %r was lost", self._name)
                if self._on_lost is not None:
                    self._on_lost()
        finally:
            self._store.places.discard(self)
            self._end_quietly(lease)


class _Watch:
    """Sets *news* once when something changes under *prefix* after a revision, or when that cannot be followed."""

    def __init__(self, store: StoreDriver, prefix: str, after: int, news: Flag) -> None:
        self._store = store
        self._prefix = prefix
        self._after = after
        self._news = news
        self._stream: Stream | None = None
        self._worker = Worker(f"keyval-lock-watch-{prefix}", self._follow, wake=self._cancel)

    def __enter__(self) -> None:
        self._worker.start()

    def __exit__(self, *_: object) -> None:
        self._worker.close()

    def _cancel(self) -> None:
        if self._stream is not None:
            self._stream.cancel()

    def _follow(self, worker: Worker) -> None:
        try:
            self._stream = self._store.line_stream(self._prefix, self._after)
            if not worker.stopping.is_set():  # otherwise there was no stream yet that could be cancelled
                any(batch is not None and batch.commits for batch in self._stream)
        except DatasyncError as error:
            log.debug("the line under %r cannot be followed: %s", self._prefix, error)
            worker.stopping.wait(POLL)
        self._news.set()
