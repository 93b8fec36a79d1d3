"""Following a store: list at a revision, stream after it, resume, list again only when nothing else is left.

One reader, one thread, whatever the number of subscribers behind its sink. Any break is followed by a resume after the
last revision that the sink has; so nothing is lost, and nothing comes twice.

Source: contract C13; the defects D30, D33, D57, D59, D69, D77 of cn-infra.
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

#: Errors in a row that a store answered with (what was asked for is gone) after which only the first pause is taken.
PROMPT = 2
#: Seconds that a stream without a commit must last to count as a success.
GOOD_STREAM = 1.0
#: Pairs between two looks at the stop flag while listing.
LOOK_UP_EVERY = 1000


class StoreReader:
    """Feeds *sink* with the state of *store* under *prefix* and then with every commit; keys come without the prefix.

    The last commit is the anchor: a resume starts with it and finds it unchanged, or the store went back in time and
    has grown again since, which revisions alone do not tell.

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
        self._due: ResyncReason | None = ResyncReason.INITIAL  # why a listing is due; None: resume
        self._revision = 0
        self._anchor: Commit | None = None
        self._lock = threading.Lock()  # guards _stream
        self._stream: Stream | None = None

    def start(self) -> None:
        """Start the thread; once."""
        self._worker.start()

    def close(self) -> None:
        """End the thread; may be called twice, before ``start``, and from the sink."""
        self._worker.close()

    def _run(self, worker: Worker) -> None:
        while not worker.stopping.is_set():
            try:
                if self._due is not None:
                    self._list(self._due)
                self._follow()
                if not self._has_history and not worker.stopping.is_set():
                    self._list_next(ResyncReason.RECONNECTED)
                worker.stopping.wait(self._backoff.next())  # a stream that ends without a word is a break as well
            except (ClosedError, ForkedError) as error:  # the application took the store away
                if not worker.stopping.is_set():
                    log.error("%s: the reader ends: %s", self._store.name, error)
                    self._sink.source_lost(error)
                return
            except Exception as error:
                if not worker.stopping.is_set():
                    self._recover(error)
                    worker.stopping.wait(self._pause(error))

    def _pause(self, error: Exception) -> float:
        """A store that answers is not away: to be listed it does not wait as if it were, unless that goes on and on."""
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
        log.info(
            "%s: listed %d key(s) at revision %d in %.2f s",
            self._store.name,
            len(entries),
            scan.revision,
            time.monotonic() - started,
        )
        if scan.revision < self._revision and self._has_history:
            reason = ResyncReason.REWOUND  # whatever made us list, the store has gone back meanwhile
        self._revision, self._anchor, self._due = scan.revision, None, None
        self._sink.feed_snapshot(scan.revision, entries, reason)

    def _follow(self) -> None:
        """Stream until it breaks or is cancelled."""
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
                self._succeeded()  # nothing was written, and it was a good stream
            self._cancel_stream()

    def _succeeded(self) -> None:
        self._backoff.reset()
        self._prompt.reset()

    def _open(self, after: int) -> Stream:
        stream = self._store.stream(self._prefix, after)
        with self._lock:
            self._stream = stream
        if self._worker.stopping.is_set():  # close() came between, and found no stream to cancel
            stream.cancel()
        return stream

    def _cancel_stream(self) -> None:
        with self._lock:
            stream = self._stream
        if stream is not None:
            stream.cancel()

    def _look_for(self, expected: Commit, batch: Batch | None) -> None:
        """A store that lost just that commit has nothing to say, and would be waited for until the next one."""
        if batch is None or batch.revision < expected.revision:
            raise self._missed(expected, {})

    def _after_anchor(self, expected: Commit, batch: Batch) -> list[Commit]:
        """The commits that follow the anchor."""
        commits = list(batch.commits)
        here = bool(commits) and commits[0].revision == expected.revision
        found = dict(commits[0].ops) if here else {}
        if found != dict(expected.ops):
            raise self._missed(expected, found)
        return commits[1:]

    def _missed(self, expected: Commit, found: dict[str, bytes | None]) -> CompactedError | RewoundError:
        """Why *found* stands where *expected* was read."""
        # A history that is compacted up to this very commit has lost its deletes (etcd before 3.4.34 and 3.5.16).
        if found == {key: value for key, value in expected.ops if value is not None}:
            return CompactedError(f"{self._store.name}: the deletes of revision {expected.revision} are compacted")
        return RewoundError(f"{self._store.name}: revision {expected.revision} is not what it was")

    def _feed(self, batch: Batch) -> None:
        if batch.commits:
            if self._has_history and batch.commits[0].revision <= self._revision:
                raise RewoundError(f"{self._store.name}: revision {batch.commits[0].revision} came again")
            self._anchor = batch.commits[-1]
        self._revision = max(self._revision, batch.revision)
        cut = len(self._prefix)
        if cut:
            commits = [Commit(revision, [(key[cut:], value) for key, value in ops]) for revision, ops in batch.commits]
            batch = Batch(batch.revision, commits)
        self._sink.feed_changes(batch)

    def _recover(self, error: Exception) -> None:
        """Decide between resuming and listing again."""
        if isinstance(error, RewoundError):
            self._list_next(ResyncReason.REWOUND)
        elif isinstance(error, CompactedError):
            if self._anchor is not None and self._anchor.revision < self._revision:
                self._anchor = None  # perhaps only the anchor is gone, not what follows
            else:
                self._list_next(ResyncReason.COMPACTED)
        elif not self._has_history:
            self._list_next(ResyncReason.RECONNECTED)
        if isinstance(error, DatasyncError):
            log.warning("%s: %s; trying again", self._store.name, error)
        else:
            log.exception("%s: the driver raised what it should not; trying again", self._store.name)
        self._sink.source_lost(error)

    def _list_next(self, reason: ResyncReason) -> None:
        # Until the first listing has succeeded it stays the first; and no later break undoes that the store went back.
        if self._due not in (ResyncReason.INITIAL, ResyncReason.REWOUND):
            self._due = reason
