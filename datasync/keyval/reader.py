"""The reader of a store: lists at a revision, streams after it, resumes, and lists again only when it must.

One reader uses one thread, for any number of subscribers behind its sink. After every disconnection it resumes after
the last revision that the sink has, so no change is lost and none is delivered twice.

Source: contract C13.
"""

from __future__ import annotations

import logging
import threading
import time
from itertools import islice

from datasync.commits import Batch, Commit, ReaderSink
from datasync.errors import ClosedError, CompactedError, DatasyncError, ForkedError
from datasync.events import ResyncReason
from datasync.keyval.driver import StoreDriver, Stream
from datasync.keyval.types import Capability, RewoundError
from datasync.runtime.backoff import AFTER_BREAK, Backoff
from datasync.runtime.threads import Worker
from datasync.runtime.timeouts import DEFAULT_TIMEOUTS, Timeouts

log = logging.getLogger(__name__)

#: Successive errors of a store that responds (compacted, rewound) after which the reader uses the full backoff.
PROMPT = 2
#: Seconds that a stream without a commit must last to reset the backoff.
GOOD_STREAM = 1.0
#: Pairs of a listing that are read between two checks of the stop flag.
LOOK_UP_EVERY = 1000


class StoreReader:
    """Feeds *sink* with the state of *store* under *prefix* and then with every commit, keys without the prefix.

    The last commit is the anchor: a resumed stream starts with it. If the anchor is missing or different, the store
    was set back and has grown again since, which revisions alone do not show.

    Threads: ``start`` and ``close`` from any; the sink is called from the reader's own thread only.
    """

    def __init__(self, store: StoreDriver, prefix: str, sink: ReaderSink, *, timeouts: Timeouts | None = None) -> None:
        self._store = store
        self._prefix = prefix
        self._sink = sink
        self._has_history = Capability.HISTORY in store.capabilities
        self._worker = Worker(f"keyval-reader-{store.name}", self._run, wake=self._cancel_stream)
        self._timeouts = timeouts or DEFAULT_TIMEOUTS
        first, most = self._timeouts.retry_backoff
        self._backoff = Backoff(first, most, after_break=AFTER_BREAK)
        self._prompt = Backoff(first, first)
        self._due: ResyncReason | None = ResyncReason.INITIAL  # the reason of the next listing; None: resume
        self._revision = 0
        self._anchor: Commit | None = None
        self._lock = threading.Lock()  # guards _stream
        self._stream: Stream | None = None

    def start(self) -> None:
        """Start the thread. Call it once."""
        self._worker.start()

    def close(self) -> None:
        """End the thread. May be called twice, before ``start``, and from the sink."""
        self._worker.close()

    def _run(self, worker: Worker) -> None:
        while not worker.stopping.is_set():
            try:
                if self._due is not None:
                    self._list(self._due)
                self._follow()
                if not self._has_history and not worker.stopping.is_set():
                    self._list_next(ResyncReason.RECONNECTED)
                worker.stopping.wait(self._backoff.next())  # a stream that ends without an error needs the backoff too
            except (ClosedError, ForkedError) as error:  # the application closed the store
                if not worker.stopping.is_set():
                    log.error("%s: the reader ends: %s", self._store.name, error)
                    self._sink.source_lost(error)
                return
            except Exception as error:
                if not worker.stopping.is_set():
                    self._recover(error)
                    worker.stopping.wait(self._pause(error))

    def _pause(self, error: Exception) -> float:
        """Return the delay before the next attempt: short while a store that responds only asks for a listing."""
        answered = isinstance(error, (CompactedError, RewoundError))
        return (self._prompt if answered and self._prompt.failures < PROMPT else self._backoff).next()

    def _list(self, reason: ResyncReason) -> None:
        started = time.monotonic()
        scan = self._store.scan(self._prefix)
        cut = len(self._prefix)
        entries: dict[str, tuple[int, bytes]] = {}
        pairs = iter(scan)
        while some := list(islice(pairs, LOOK_UP_EVERY)):
            if self._worker.stopping.is_set():
                return
            for key, value, revision in some:
                entries[key[cut:]] = (revision, value)
        seconds = time.monotonic() - started
        log.info("%s: listed %d keys at revision %d in %.2f s", self._store.name, len(entries), scan.revision, seconds)
        if scan.revision < self._revision and self._has_history:
            reason = ResyncReason.REWOUND  # the listing itself shows that the store was set back, whatever caused it
        self._revision, self._anchor, self._due = scan.revision, None, None
        self._sink.feed_snapshot(scan.revision, entries, reason)

    def _follow(self) -> None:
        """Stream until the stream fails or is cancelled."""
        expected = self._anchor if self._has_history else None
        stream = self._open(self._revision if expected is None else expected.revision - 1)
        spoken: float | None = None
        heard = False
        try:
            for batch in stream:
                if self._worker.stopping.is_set():
                    return
                spoken = spoken or time.monotonic()
                if expected is not None and time.monotonic() - spoken > self._timeouts.anchor_patience:
                    self._look_for(expected, batch)
                if batch is None:
                    continue
                heard = True
                commits = batch.commits
                if expected is not None and batch.revision >= expected.revision:
                    commits = self._after_anchor(expected, batch)
                    expected = None
                if expected is None:
                    self._feed(Batch(batch.revision, commits))
                    if commits:
                        self._succeeded()
        finally:
            if heard and spoken is not None and time.monotonic() - spoken > GOOD_STREAM:
                self._succeeded()  # a healthy stream during which nothing was written
            self._cancel_stream()

    def _succeeded(self) -> None:
        self._backoff.reset()
        self._prompt.reset()

    def _open(self, after: int) -> Stream:
        stream = self._store.stream(self._prefix, after)
        with self._lock:
            self._stream = stream
        if self._worker.stopping.is_set():  # close() ran before the assignment and found no stream to cancel
            stream.cancel()
        return stream

    def _cancel_stream(self) -> None:
        with self._lock:
            stream = self._stream
        if stream is not None:
            stream.cancel()

    def _look_for(self, expected: Commit, batch: Batch | None) -> None:
        """Raise if the anchor is overdue. A store that lost only that commit would be silent until the next one."""
        if batch is None or batch.revision < expected.revision:
            raise self._missed(expected, {})

    def _after_anchor(self, expected: Commit, batch: Batch) -> list[Commit]:
        """Return the commits that follow the anchor."""
        commits = list(batch.commits)
        here = bool(commits) and commits[0].revision == expected.revision
        found = dict(commits[0].ops) if here else {}
        if found != dict(expected.ops):
            raise self._missed(expected, found)
        return commits[1:]

    def _missed(self, expected: Commit, found: dict[str, bytes | None]) -> CompactedError | RewoundError:
        """Return the error for *found* in place of the anchor *expected*."""
        # etcd before 3.4.34 and 3.5.16 loses the deletes of the revision up to which its history is compacted.
        if found == {key: value for key, value in expected.ops if value is not None}:
            return CompactedError(f"{self._store.name}: the deletes of revision {expected.revision} are compacted")
        return RewoundError(f"{self._store.name}: revision {expected.revision} has changed since it was read")

    def _feed(self, batch: Batch) -> None:
        if batch.commits:
            if self._has_history and batch.commits[0].revision <= self._revision:
                raise RewoundError(f"{self._store.name}: revision {batch.commits[0].revision} was delivered twice")
            self._anchor = batch.commits[-1]
        self._revision = max(self._revision, batch.revision)
        cut = len(self._prefix)
        if cut:
            commits = [Commit(revision, [(key[cut:], value) for key, value in ops]) for revision, ops in batch.commits]
            batch = Batch(batch.revision, commits)
        self._sink.feed_changes(batch)

    def _recover(self, error: Exception) -> None:
        """Choose between resuming and listing again."""
        if isinstance(error, RewoundError):
            self._list_next(ResyncReason.REWOUND)
        elif isinstance(error, CompactedError):
            if self._anchor is not None and self._anchor.revision < self._revision:
                self._anchor = None  # the commits after the anchor may still exist: resume without it first
            else:
                self._list_next(ResyncReason.COMPACTED)
        elif not self._has_history:
            self._list_next(ResyncReason.RECONNECTED)
        if isinstance(error, DatasyncError):
            log.warning("%s: %s; retrying", self._store.name, error)
        else:
            log.exception("%s: unexpected error of the driver; retrying", self._store.name)
        self._sink.source_lost(error)

    def _list_next(self, reason: ResyncReason) -> None:
        # The first listing stays INITIAL until it succeeds, and REWOUND outlasts every later disconnection.
        if self._due not in (ResyncReason.INITIAL, ResyncReason.REWOUND):
            self._due = reason
