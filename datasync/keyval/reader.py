"""The reader of a store: it lists at a revision, streams what follows, resumes, and lists again only when it must.

One reader uses one thread, for any number of subscriptions behind its sink. After a disconnection it resumes at the
last commit delivered, checks that it is unchanged, and delivers only what follows: no change is lost or repeated.

Source: contract C13.
"""

from __future__ import annotations

import logging
import time
from itertools import islice

from datasync.commits import Batch, Commit, ReaderSink
from datasync.errors import ClosedError, CompactedError, DatasyncError, ForkedError
from datasync.events import ResyncReason
from datasync.keyval.driver import StoreDriver, Stream
from datasync.keyval.types import Capability, RewoundError
from datasync.runtime import monitoring
from datasync.runtime.backoff import AFTER_BREAK, Backoff
from datasync.runtime.logs import get_logger
from datasync.runtime.threads import Worker
from datasync.runtime.timeouts import Timeouts, default_timeouts
from datasync.runtime.wording import counted

log = get_logger(__name__)

#: Compacted or rewound errors in a row that are retried quickly; after that the full backoff applies.
QUICK_RETRIES = 2
#: Seconds that a stream without a commit must last to reset the backoff.
GOOD_STREAM = 1.0
#: Pairs of a listing that are read between two checks of the stop flag.
CHECK_STOP_EVERY = 1000
#: Seconds between two log lines about the progress of a listing.
PROGRESS_INTERVAL = 10.0


class StoreReader:
    """Feeds *sink* with the state of *store* under *prefix* and then with every commit; the prefix is cut off the keys.

    The last commit is the anchor: a resumed stream starts with it. If the anchor is missing or different, the store
    was restored from a copy and written to again; the revision number alone cannot show that.

    Threads: ``start`` and ``close`` from any; the sink is called from the reader's own thread only.
    """

    def __init__(
        self,
        store: StoreDriver,
        prefix: str,
        sink: ReaderSink,
        *,
        source: str | None = None,
        timeouts: Timeouts | None = None,
    ) -> None:
        self._store = store
        #: Name of the source, in the log and in metrics; the store's by default.
        self.source = source or store.name
        #: Keys that the current listing has read so far; 0 between listings.
        self.loading = 0
        self._prefix = prefix
        self._sink = sink
        self._has_history = Capability.HISTORY in store.capabilities
        self._resumes = self._has_history or store.resumes
        self._worker = Worker(f"keyval-reader-{store.name}", self._run, wake=self._cancel_stream)
        self._timeouts = timeouts or default_timeouts()
        first, most = self._timeouts.retry_backoff
        self._backoff = Backoff(first, most, after_break=AFTER_BREAK)
        self._quick_backoff = Backoff(first, first)
        self._listing_reason: ResyncReason | None = ResyncReason.INITIAL  # None: resume
        self._revision = 0
        self._anchor: Commit | None = None
        self._lost_at: float | None = None
        self._last_error: type[Exception] | None = None
        self._stream: Stream | None = None
        self.measure(monitoring.monitor())
        monitoring.enrol("reader", self)

    def measure(self, monitor: monitoring.Monitor) -> None:
        """Count for *monitor* from now on."""
        self._tally = monitor.tally("source", self.source, self)

    def start(self) -> None:
        """Start the thread. Call it once."""
        self._worker.start()

    def signal(self) -> None:
        """Tell the thread to end, without waiting for it: the first half of ``close``."""
        self._worker.signal()

    def close(self) -> None:
        """End the thread. May be called twice, before ``start``, and from the sink."""
        self._worker.close()

    def _run(self, worker: Worker) -> None:
        while not worker.stopping.is_set():
            try:
                if self._listing_reason is not None:
                    self._list(self._listing_reason)
                self._follow()
                if not self._resumes and not worker.stopping.is_set():
                    self._request_listing(ResyncReason.RECONNECTED)
                worker.stopping.wait(self._backoff.next())  # a stream that ends without an error needs the backoff too
            except (ClosedError, ForkedError) as error:  # the application closed the store
                if not worker.stopping.is_set():
                    self._say(logging.ERROR, "ended", "the source is not read any more: %s", self._words(error))
                    self._sink.source_lost(error)
                return
            except Exception as error:
                if not worker.stopping.is_set():
                    self._recover(error)
                    worker.stopping.wait(self._retry_delay(error))

    def _retry_delay(self, error: Exception) -> float:
        """Return the delay before the next attempt: short if the store responded and only a new listing is needed."""
        responded = isinstance(error, (CompactedError, RewoundError))
        quick = responded and self._quick_backoff.failures < QUICK_RETRIES
        return (self._quick_backoff if quick else self._backoff).next()

    def _list(self, reason: ResyncReason) -> None:
        started = time.monotonic()
        scan = self._store.scan(self._prefix)
        cut = len(self._prefix)
        entries: dict[str, tuple[int, bytes]] = {}
        pairs = iter(scan)
        progress_at = started + PROGRESS_INTERVAL
        try:
            while some := list(islice(pairs, CHECK_STOP_EVERY)):
                if self._worker.stopping.is_set():
                    return
                for key, value, revision in some:
                    entries[key[cut:]] = (revision, value)
                self.loading = len(entries)
                if (now := time.monotonic()) >= progress_at:
                    progress_at = now + PROGRESS_INTERVAL
                    self._say(logging.INFO, "loading", "%d keys listed after %.0f s", len(entries), now - started)
        finally:
            self.loading = 0
        seconds = time.monotonic() - started
        if self._tally is not None:
            self._tally.count("lists")
            self._tally.time("list", seconds)
        text = "listed %s at revision %d in %.2f s"
        self._say(logging.INFO, "listed", text, counted(len(entries), "key"), scan.revision, seconds)
        if scan.revision < self._revision and self._has_history:
            reason = ResyncReason.REWOUND  # the listing itself shows that the store was rewound, whatever caused it
        self._revision, self._anchor, self._listing_reason = scan.revision, None, None
        self._sink.feed_snapshot(scan.revision, entries, reason)
        self._reached()

    def _follow(self) -> None:
        """Stream until the stream fails or is cancelled."""
        anchor = self._anchor if self._has_history else None
        stream = self._open(self._revision if anchor is None else anchor.revision - 1)
        first_yield_at: float | None = None
        got_batch = False
        try:
            for batch in stream:
                if self._worker.stopping.is_set():
                    return
                first_yield_at = first_yield_at or time.monotonic()
                if anchor is not None and time.monotonic() - first_yield_at > self._timeouts.anchor_patience:
                    self._check_anchor_overdue(anchor, batch)
                if batch is None:
                    continue
                got_batch = True
                commits = batch.commits
                if anchor is not None and batch.revision >= anchor.revision:
                    commits = self._after_anchor(anchor, batch)
                    anchor = None
                if anchor is None:
                    self._feed(Batch(batch.revision, commits))
                    if commits:
                        self._succeeded()
        finally:
            if got_batch and first_yield_at is not None and time.monotonic() - first_yield_at > GOOD_STREAM:
                self._succeeded()  # a healthy stream during which nothing was written
            self._cancel_stream()

    def _succeeded(self) -> None:
        self._backoff.reset()
        self._quick_backoff.reset()

    def _open(self, after: int) -> Stream:
        stream = self._store.stream(self._prefix, after)
        if self._tally is not None:
            self._tally.count("watches")
        self._stream = stream  # without a lock: close() sets the flag first and reads this second
        if self._worker.stopping.is_set():  # close() ran before the assignment and found no stream to cancel
            stream.cancel()
        return stream

    def _cancel_stream(self) -> None:
        stream = self._stream
        if stream is not None:
            stream.cancel()

    def _check_anchor_overdue(self, anchor: Commit, batch: Batch | None) -> None:
        """Raise if *batch* does not reach the overdue anchor.

        A store that lost only the anchor sends nothing until its next commit, so we do not wait forever.
        """
        if batch is None or batch.revision < anchor.revision:
            raise self._anchor_error(anchor, {})

    def _after_anchor(self, anchor: Commit, batch: Batch) -> list[Commit]:
        """Return the commits that follow the anchor."""
        commits = list(batch.commits)
        here = bool(commits) and commits[0].revision == anchor.revision
        found = dict(commits[0].ops) if here else {}
        if found != dict(anchor.ops):
            raise self._anchor_error(anchor, found)
        return commits[1:]

    def _anchor_error(self, anchor: Commit, found: dict[str, bytes | None]) -> CompactedError | RewoundError:
        """Return the error for *found* in place of *anchor*."""
        # etcd before 3.4.34 and 3.5.16 loses the deletes of the revision up to which its history is compacted.
        if found == {key: value for key, value in anchor.ops if value is not None}:
            return CompactedError(f"{self._store.name}: the deletes of revision {anchor.revision} are compacted")
        return RewoundError(f"{self._store.name}: revision {anchor.revision} has changed since it was read")

    def _feed(self, batch: Batch) -> None:
        if batch.commits:
            first, last = batch.commits[0].revision, self._revision
            if self._has_history and first <= last:
                raise RewoundError(f"{self._store.name}: revision {first} is not above {last}, the last one read")
            self._anchor = batch.commits[-1]
        self._revision = max(self._revision, batch.revision)
        cut = len(self._prefix)
        if cut:
            commits = [Commit(revision, [(key[cut:], value) for key, value in ops]) for revision, ops in batch.commits]
            batch = Batch(batch.revision, commits)
        self._sink.feed_changes(batch)
        self._reached()

    def _recover(self, error: Exception) -> None:
        """Decide whether to list again, log the error, and report the source as lost."""
        if isinstance(error, RewoundError):
            self._request_listing(ResyncReason.REWOUND)
        elif isinstance(error, CompactedError):
            if not self._has_history:
                self._request_listing(ResyncReason.RECONNECTED)
            elif self._anchor is not None and self._anchor.revision < self._revision:
                self._anchor = None  # the commits after the anchor may still exist: resume without it first
            else:
                self._request_listing(ResyncReason.COMPACTED)
        elif not self._resumes:
            self._request_listing(ResyncReason.RECONNECTED)
        self._sink.source_lost(error)
        first = self._lost_at is None or type(error) is not self._last_error
        self._lost_at = self._lost_at or time.monotonic()
        self._last_error = type(error)
        if not first:  # one line says that the source is lost, and one that it is back
            self._say(logging.DEBUG, "lost", "%s; retrying", self._words(error))
        elif isinstance(error, DatasyncError):
            self._say(logging.WARNING, "lost", "%s; retrying", self._words(error))
        else:
            self._say(logging.ERROR, "lost", "unexpected error; retrying", exc_info=True)

    def _reached(self) -> None:
        """Say that the source is back, if it was lost."""
        if self._lost_at is not None:
            lost_at, self._lost_at = self._lost_at, None
            self._say(logging.WARNING, "ready", "the source is back after %.1f s", time.monotonic() - lost_at)

    def _words(self, error: Exception) -> str:
        """Return the text of *error*, without the name of the store where the name of the source has it already."""
        name = self._store.name
        text = str(error).removeprefix(f"{name}: ")
        return text.replace(name, "the store") if name in self.source else text

    def _say(self, level: int, state: str, text: str, *args: object, exc_info: bool = False) -> None:
        """Log a change of the *state* of the source; handlers find its name in ``record.source``."""
        extra = {"source": self.source, "state": state}
        log.log(level, f"%s: {text}", self.source, *args, extra=extra, exc_info=exc_info)

    def _request_listing(self, reason: ResyncReason) -> None:
        # The first listing stays INITIAL until it succeeds, and REWOUND outlasts every later disconnection.
        if self._listing_reason not in (ResyncReason.INITIAL, ResyncReason.REWOUND):
            self._listing_reason = reason
