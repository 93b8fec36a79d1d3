"""A client of locks in a process of its own, and the offline judgement of what several of them recorded.

``python -m tests.support.lock_client URL NAME TTL N FILE [OPTION=VALUE ...]`` answers questions, see ``Peer``. It notes
in FILE when it held the lock: a line per look, at times that processes of one machine can compare.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from datasync.errors import DatasyncError
from datasync.keyval import Lock, connect
from datasync.runtime import boot_clock
from tests.support.child_process import Answer, answer_questions


class Hold(NamedTuple):
    """A client held the lock from *begin* to *end* at least."""

    token: int
    begin: float
    end: float


class Notes:
    """The lines of one client."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def look(self, lock: Lock) -> bool:
        """Note that the lock is held now, if it is."""
        lost, token, now = lock.lost, lock.token, boot_clock.now()
        held = lock.is_acquired and not lost.is_set()  # after the clock was read: it was held at that time
        if held:
            os.write(self._file, f"{token} {now}\n".encode())
        return held


def holds(path: Path) -> list[Hold]:
    """What the clients noted, in the order of the beginnings."""
    looks: dict[int, list[float]] = {}
    for line in path.read_text().splitlines():
        token, at = line.split()
        looks.setdefault(int(token), []).append(float(at))
    return sorted((Hold(token, min(times), max(times)) for token, times in looks.items()), key=lambda one: one.begin)


def violations(noted: Iterable[Hold], size: int = 1) -> list[str]:
    """Return where more than *size* clients held the lock, and, of a lock, where a token did not grow."""
    found = []
    earlier: list[Hold] = []
    for one in noted:
        beside = [other for other in earlier if other.end >= one.begin]
        if len(beside) >= size:
            found.append(f"{one} begins while it is held: {beside}")
        if size == 1 and earlier and one.token <= earlier[-1].token:
            found.append(f"the token of {one} is not greater than that of {earlier[-1]}")
        earlier.append(one)
    return found


class Client:
    """What the process can be asked."""

    def __init__(self, url: str, name: str, ttl: float, n: int, path: str, **options: str) -> None:
        self._store = connect(url, **{key: float(value) for key, value in options.items()})
        self._lock = self._store.lock(name, ttl, n=n)
        self._notes = Notes(path)
        self._left = self._errors = 0

    def acquire(self, timeout: float | None = None) -> Answer:
        """Acquire the lock."""
        return {"acquired": self._lock.acquire(timeout=timeout), **self.state()}

    def state(self) -> Answer:
        """The first look at the lock, then all that it tells."""
        held = self._notes.look(self._lock)
        return {"held": held, "lost": self._lock.lost.is_set(), "token": self._lock.token}

    def release(self) -> Answer:
        """Release the lock."""
        return {"released": self._lock.release()}

    def keep(self, seconds: float) -> Answer:
        """Note for *seconds* whether the lock is held, as fast as it can be told."""
        end = boot_clock.now() + seconds
        while boot_clock.now() < end:
            self._notes.look(self._lock)
            self._lock.lost.wait(0.005)
        return self.state()

    def rounds(self, number: int) -> Answer:
        """Begin to acquire and release it *number* times; ``outcome`` tells of it."""
        self._errors, self._left = 0, number
        threading.Thread(target=self._go_round, daemon=True).start()
        return {}

    def outcome(self) -> Answer:
        """The rounds that are left, and the errors, which count for nothing: the server was away."""
        return {"left": self._left, "errors": self._errors}

    def _go_round(self) -> None:
        while self._left:
            try:
                if not self._lock.acquire(timeout=10):
                    continue
            except DatasyncError:
                self._errors += 1
                threading.Event().wait(0.05)
                continue
            for _ in range(5):
                self._notes.look(self._lock)
                self._lock.lost.wait(0.002)
            self._notes.look(self._lock)
            self._lock.release()
            self._left -= 1


def main() -> None:
    url, name, ttl, n, path, *options = sys.argv[1:]
    client = Client(url, name, float(ttl), int(n), path, **dict(option.split("=") for option in options))
    verbs = ("acquire", "state", "release", "keep", "rounds", "outcome")
    answer_questions({verb: getattr(client, verb) for verb in verbs})


if __name__ == "__main__":
    main()
