"""The last transactions of a source, which every event stream reads at its own pace.

One bounded buffer serves all streams; nothing is queued per stream. A stream that falls behind the buffer, or resumes
from a revision that has left it, starts over from a snapshot.

Source: contract C8.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from datasync.restsync.encoding import change_of
from datasync.runtime.threads import SteppedCondition
from datasync.syncbase.change import ChangeResp

#: Transactions that the buffer keeps.
HISTORY = 1000
#: Bytes of values that the buffer keeps.
HISTORY_BYTES = 16 * 1024 * 1024
#: Requests that the dashboard shows.
RECENT_REQUESTS = 50


class BufferedTransaction:
    """One transaction with its JSON text, which is made once for all streams."""

    __slots__ = ("_text", "changes", "revision", "size")

    def __init__(self, revision: int, changes: Sequence[ChangeResp] | None) -> None:
        self.revision = revision
        #: None: a full state replaced everything.
        self.changes = changes
        self.size = sum(_size(change) for change in changes or ())
        self._text: str | None = None

    def text(self, prefixes: tuple[str, ...]) -> str:
        """Return the changes under *prefixes* as a JSON document; empty when there are none."""
        changes = self.changes or ()
        selected = [change for change in changes if change.key.startswith(prefixes)]
        if not selected:
            return ""
        if len(selected) < len(changes):
            return _text(self.revision, selected)
        if self._text is None:
            self._text = _text(self.revision, selected)
        return self._text


class RequestRecord(NamedTuple):
    """The outcome of one write request."""

    at: float  # seconds since the epoch, for display
    op: str
    subject: str  # the key, or how many
    key: str  # the one that was rejected, or the first one; empty without keys
    revision: int
    status: int
    detail: str
    seconds: float


class ReplayBuffer:
    """The buffer, and the records of the last requests.

    Threads: one registry calls ``add``, under its lock; all other methods from any thread.
    """

    def __init__(self, history: int = HISTORY, history_bytes: int = HISTORY_BYTES) -> None:
        self._history = history
        self._history_bytes = history_bytes
        # Guards the fields below, and wakes the streams that wait for a transaction.
        self._news = SteppedCondition(threading.Lock())
        self._transactions: deque[BufferedTransaction] = deque()
        self._bytes = 0
        self._floor = 0  # the buffer has every transaction after this revision
        self._last = 0
        self._records: deque[RequestRecord] = deque(maxlen=RECENT_REQUESTS)

    def add(self, revision: int, changes: Sequence[ChangeResp] | None) -> None:
        """Append a transaction; *changes* is None for a full state."""
        if changes is not None and not changes:
            return
        transaction = BufferedTransaction(revision, changes)
        with self._news:
            self._transactions.append(transaction)
            self._bytes += transaction.size
            self._last = revision
            while len(self._transactions) > self._history or self._bytes > self._history_bytes:
                dropped = self._transactions.popleft()
                self._bytes -= dropped.size
                self._floor = dropped.revision
            self._news.notify_all()

    def begin(self, revision: int) -> None:
        """Note that transactions up to *revision* may lack."""
        with self._news:
            self._floor = revision
            self._last = max(self._last, revision)

    def after(self, revision: int) -> list[BufferedTransaction] | None:
        """Return the transactions after *revision*; None when the buffer lacks some."""
        with self._news:
            if revision < self._floor:
                return None
            found: list[BufferedTransaction] = []
            for transaction in reversed(self._transactions):
                if transaction.revision <= revision:
                    break
                found.append(transaction)
        found.reverse()
        return found

    def wait(self, revision: int, timeout: float, ended: Callable[[], bool]) -> None:
        """Wait up to *timeout* seconds for a transaction after *revision*, or for a ``wake`` while *ended* is True."""
        deadline = time.monotonic() + timeout
        with self._news:
            while self._last <= revision and not ended():
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    return
                self._news.wait(remaining)

    def wake(self) -> None:
        """Let every ``wait`` check its condition again."""
        with self._news:
            self._news.notify_all()

    def record(self, record: RequestRecord) -> None:
        """Keep *record* for the dashboard."""
        with self._news:
            self._records.append(record)

    def records(self) -> list[RequestRecord]:
        """Return the records, newest first."""
        with self._news:
            return list(self._records)[::-1]


def _size(change: ChangeResp) -> int:
    # A value without bytes counts as its overhead only.
    data = getattr(change.payload, "data", None)
    return len(change.key) + (len(data) if isinstance(data, bytes) else 0) + 100


def _text(revision: int, changes: Sequence[ChangeResp]) -> str:
    items = ",".join(change_of(change.key, change.revision, change.payload) for change in changes)
    return f'{{"revision":{revision},"changes":[{items}]}}'
