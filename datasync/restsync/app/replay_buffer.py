"""The last transactions of a source, for those who follow it: each reads at its own pace, and nothing is kept for it.

One bounded ring serves every event stream. Who falls behind it, or comes back too late, starts over from a snapshot.

Source: contract C8; section 5.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from datasync.restsync.encoding import change_of
from datasync.syncbase.change import ChangeResp

#: Transactions that are kept.
HISTORY = 1000
#: Bytes of values that are kept with them.
HISTORY_BYTES = 16 * 1024 * 1024
#: Answers that are remembered for the page.
ANSWERS = 50


class Entry:
    """One transaction, and its text, which is written once for all who follow."""

    __slots__ = ("_text", "changes", "revision", "size")

    def __init__(self, revision: int, changes: Sequence[ChangeResp] | None) -> None:
        self.revision = revision
        #: None: a full state replaced all there was.
        self.changes = changes
        self.size = sum(_size(change) for change in changes or ())
        self._text: str | None = None

    def text(self, prefixes: tuple[str, ...]) -> str:
        """The changes under *prefixes* as a JSON document; empty when there is none."""
        changes = self.changes or ()
        wanted = [change for change in changes if change.key.startswith(prefixes)]
        if not wanted:
            return ""
        if len(wanted) < len(changes):
            return _text(self.revision, wanted)
        if self._text is None:
            self._text = _text(self.revision, wanted)
        return self._text


class Answer(NamedTuple):
    """What became of one request that changed something."""

    at: float  # seconds since the epoch, to be shown
    op: str
    key: str
    revision: int
    status: int
    detail: str
    seconds: float


class Journal:
    """The ring. ``note`` is called by one registry under its lock, everything else by anybody."""

    def __init__(self, history: int = HISTORY, history_bytes: int = HISTORY_BYTES) -> None:
        self._history = history
        self._history_bytes = history_bytes
        # Guards the fields below, and wakes who waits for news.
        self._news = threading.Condition(threading.Lock())
        self._entries: deque[Entry] = deque()
        self._bytes = 0
        self._floor = 0  # everything after this revision is in the ring
        self._last = 0
        self._answers: deque[Answer] = deque(maxlen=ANSWERS)

    def note(self, revision: int, changes: Sequence[ChangeResp] | None) -> None:
        """Take a transaction."""
        if changes is not None and not changes:
            return
        entry = Entry(revision, changes)
        with self._news:
            self._entries.append(entry)
            self._bytes += entry.size
            self._last = revision
            while len(self._entries) > self._history or self._bytes > self._history_bytes:
                dropped = self._entries.popleft()
                self._bytes -= dropped.size
                self._floor = dropped.revision
            self._news.notify_all()

    def after(self, revision: int) -> list[Entry] | None:
        """The transactions after *revision*; None when some of them are gone, or *revision* is yet to come."""
        with self._news:
            if not self._floor <= revision <= self._last:
                return None
            found: list[Entry] = []
            for entry in reversed(self._entries):
                if entry.revision <= revision:
                    break
                found.append(entry)
        found.reverse()
        return found

    def wait(self, revision: int, timeout: float, ended: Callable[[], bool]) -> None:
        """Return when there is something after *revision*, *ended* says so (see ``wake``), or time is over."""
        deadline = time.monotonic() + timeout
        with self._news:
            while self._last <= revision and not ended():
                remaining = deadline - time.monotonic()
                if remaining <= 0 or not self._news.wait(remaining):
                    return

    def wake(self) -> None:
        """Let everybody who waits look again."""
        with self._news:
            self._news.notify_all()

    def remember(self, answer: Answer) -> None:
        """Keep *answer* for the page."""
        with self._news:
            self._answers.append(answer)

    def answers(self) -> list[Answer]:
        """The last answers, newest first."""
        with self._news:
            return list(self._answers)[::-1]


def _size(change: ChangeResp) -> int:
    # A value without bytes costs what anything costs.
    data = getattr(change.value, "data", None)
    return len(change.key) + (len(data) if isinstance(data, bytes) else 0) + 100


def _text(revision: int, changes: Sequence[ChangeResp]) -> str:
    listing = ",".join(change_of(change.key, change.revision, change.value) for change in changes)
    return f'{{"revision":{revision},"changes":[{listing}]}}'
