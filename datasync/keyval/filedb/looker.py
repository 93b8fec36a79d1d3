"""When to look at the files: for each caller, after a hint, and now and then.

Source: contract C13, C15.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from datasync.errors import ClosedError
from datasync.keyval.diff_stream import Picture, PictureSource
from datasync.keyval.filedb.config import FileConfig
from datasync.keyval.filedb.files import FileSet
from datasync.keyval.filedb.hints import Hints
from datasync.runtime.threads import SteppedCondition

#: Seconds between a hint and the look: what is written together is seen together.
GATHER = 0.01
#: The share of a core that looks may take while files change all the time, and while nothing changes.
BUSY, IDLE = 0.5, 0.006
#: Seconds between two looks at files that are so many that looking costs more than that.
LONGEST = 10.0


class Looker:
    """Keeps the picture of *files* as new as its users need it. There is no thread: those that wait look.

    Threads: any.
    """

    def __init__(self, files: FileSet, config: FileConfig, name: str) -> None:
        self._files = files
        self._config = config
        self._name = name
        self._hints = Hints(self._hint, name)
        #: Held while files are read or written: one look at a time. ``close`` and ``wake`` do not wait for it.
        self._looking = threading.RLock()
        #: Guards the fields below; notified on each hint, look, wake and close.
        self._changed = SteppedCondition()
        self._closed = False
        self._followed = False
        self._hinted_at: float | None = None
        self._not_before = 0.0
        self._due = 0.0

    def look(self) -> Picture:
        """Look at the files, and return the picture. Raises as ``FileSet.look``, and ``ClosedError``."""
        with self.looking() as files:
            return files.picture

    @property
    def problems(self) -> dict[str, str]:
        """Path to what is wrong with it, as of the last look."""
        return self._files.problems

    def current(self) -> Picture:
        """Return the picture of the last look."""
        return self._files.picture

    @contextmanager
    def looking(self) -> Iterator[FileSet]:
        """Look at the files, and let nobody else do so during the block, which may write one of them."""
        with self._looking:
            self._look()
            before = self._files.revision
            yield self._files
            if self._files.revision != before:
                self._notify()

    def wait(self, seen: int, seconds: float, woken: Callable[[], bool]) -> bool:
        """Look until the revision is not *seen* any more; return False after *seconds*, or when *woken* is True."""
        give_up = time.monotonic() + seconds
        while not woken():
            with self._changed:
                self._check_open()
                if self._files.revision != seen:
                    return True
                now, due = time.monotonic(), self._next_look()
                if due > now:
                    if now >= give_up:
                        return False
                    self._changed.wait(min(due, give_up) - now)
                    continue
            with self._looking:
                if self._next_look() <= time.monotonic():  # otherwise another stream has just looked
                    self._look()
        return False

    def follow(self) -> None:
        """Ask for hints from now on: somebody is going to wait."""
        with self._looking:
            self._check_open()
            self._followed = True

    def wake(self) -> None:
        """Let those that wait check whether they are ``woken``."""
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        """End all waits with ``ClosedError``, and the hints. May be called twice."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._hints.close()

    def check_open(self) -> None:
        """Raise ``ClosedError`` after ``close``."""
        self._check_open()

    def _look(self) -> None:
        self._check_open()
        with self._changed:  # a hint that comes during the look asks for another one
            self._hinted_at = None
        cost = time.thread_time()
        try:
            if self._followed and self._config.hints:
                self._hints.watch(self._files.folders)  # before the look: what is written after it gives a hint
                if self._closed:  # in the middle of that: what it started has no other end
                    self._hints.close()
            self._files.look()
        finally:
            ended, cost = time.monotonic(), time.thread_time() - cost
            polled = max(self._config.poll_interval, min(cost / IDLE, LONGEST))
            recheck = self._files.recheck
            with self._changed:
                self._not_before = ended + cost * (1 / BUSY - 1)
                self._due = ended + (polled if recheck is None else min(polled, recheck))
                self._changed.notify_all()

    def _next_look(self) -> float:
        """Return when the next look is due."""
        due = self._due if self._hinted_at is None else min(self._due, self._hinted_at + GATHER)
        return max(due, self._not_before)

    def _hint(self) -> None:
        with self._changed:
            if self._hinted_at is None:
                self._hinted_at = time.monotonic()
            self._changed.notify_all()

    def _notify(self) -> None:
        with self._changed:
            self._due = min(self._due, time.monotonic() + (self._files.recheck or self._config.poll_interval))
            self._changed.notify_all()

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError(f"{self._name} is closed")


class FilePictures(PictureSource):
    """The pictures of the files under a prefix, for one stream."""

    def __init__(self, looker: Looker, prefix: str) -> None:
        self._looker = looker
        self._prefix = prefix
        self._seen: int | None = None
        self._woken = False

    def picture(self) -> Picture:
        picture = self._looker.look() if self._seen is None else self._looker.current()
        self._seen = picture.revision
        return under(self._prefix, picture)

    def wait(self, seconds: float) -> bool:
        return self._looker.wait(self._seen or 0, seconds, lambda: self._woken)

    def wake(self) -> None:
        self._woken = True
        self._looker.wake()


def under(prefix: str, picture: Picture) -> Picture:
    """Return the part of *picture* whose keys start with *prefix*."""
    if not prefix:
        return picture
    return Picture(picture.revision, {key: pair for key, pair in picture.pairs.items() if key.startswith(prefix)})
