"""What random histories found, each as the smallest history that shows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from queue import Full, Queue
from typing import Any, ClassVar

import pytest
from google.protobuf.wrappers_pb2 import BytesValue

from datasync.commits import Batch, Commit
from datasync.errors import CompactedError, StoreConnectionError
from datasync.events import Op, ResyncReason
from datasync.keyval import reader as reader_module
from datasync.keyval.driver import Scan
from datasync.keyval.memory import MemoryStore
from datasync.keyval.reader import StoreReader
from datasync.keyval.types import Capability, KeyValue, RewoundError
from datasync.runtime.backoff import Backoff
from datasync.runtime.timeouts import ABANDON_TIMEOUT, FAILURE_BACKOFF, Timeouts
from datasync.syncbase.change import Change
from datasync.syncbase.futures import PropagationFuture
from datasync.syncbase.registry import Registry
from tests.conftest import take, wait_until
from tests.faults.history import Truth
from tests.faults.sources.scripted_store import ScriptedStore, write
from tests.support.clock import ManualClock

HURRIED = Timeouts(retry_backoff=(0.001, 0.01), anchor_patience=0.1, failure_backoff=(0.001, 0.01))

Entries = dict[str, tuple[int, bytes]]


class Sink:
    """Notes what the reader says."""

    def __init__(self) -> None:
        self.snapshots: list[tuple[ResyncReason, int, Entries]] = []
        self.commits: list[int] = []
        self.losses: list[BaseException] = []

    def feed_snapshot(self, revision: int, entries: Entries, reason: ResyncReason) -> None:
        self.snapshots.append((reason, revision, entries))

    def feed_changes(self, batch: Batch) -> None:
        self.commits += [commit.revision for commit in batch.commits]

    def source_lost(self, error: BaseException) -> None:
        self.losses.append(error)

    @property
    def reasons(self) -> list[ResyncReason]:
        return [reason for reason, _, _ in self.snapshots]


class Breakable(ScriptedStore):
    """The honest store, with one misfortune at a time."""

    def __init__(self) -> None:
        super().__init__(Truth())
        self.down = False
        self.pages: list[Exception] = []
        self.streams: list[Any] = []

    def scan(self, prefix: str, *, keys_only: bool = False) -> Scan:
        if self.down:
            raise StoreConnectionError("down")
        scan = super().scan(prefix, keys_only=keys_only)
        return _Pages(scan, self.pages.pop(0)) if self.pages else scan

    def stream(self, prefix: str, after: int) -> Any:
        if self.down:
            raise StoreConnectionError("down")
        stream = super().stream(prefix, after)
        self.streams.append(stream)
        return stream

    def cut(self) -> None:
        self.down = True
        for stream in self.streams:
            stream.cancel()


class _Pages(Scan):
    """A listing whose second page never comes."""

    def __init__(self, scan: Scan, error: Exception) -> None:
        self.revision = scan.revision
        self._scan = scan
        self._error = error

    def __iter__(self) -> Iterator[KeyValue]:
        yield next(iter(self._scan))
        raise self._error


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasync.runtime.timeouts.DEFAULT_TIMEOUTS", HURRIED)


@pytest.fixture
def followed() -> Iterator[tuple[Breakable, Sink]]:
    """A store that a reader has followed up to revision 4."""
    store, sink = Breakable(), Sink()
    write(store, [("a", b"1")])
    write(store, [("b", b"1")])
    reader = StoreReader(store, "", sink)
    reader.start()
    wait_until(lambda: sink.snapshots, "the store was listed")
    write(store, [("c", b"1")])
    wait_until(lambda: sink.commits == [4], "the commit was read")
    yield store, sink
    reader.close()


class Noted(Backoff):
    """Notes each pause that is taken, by the longest that it could be, and takes none."""

    taken: ClassVar[list[float]] = []

    def next(self) -> float:
        super().next()
        self.taken.append(self._most)
        return 0.001


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    monkeypatch.setattr(reader_module, "Backoff", Noted)
    monkeypatch.setattr("datasync.runtime.timeouts.DEFAULT_TIMEOUTS", Timeouts(anchor_patience=0.1))
    monkeypatch.setattr(Noted, "taken", [])
    return Noted.taken


def test_c13_a_store_that_answers_is_listed_again_without_the_pauses_of_one_that_is_away(
    pauses: list[float], followed: tuple[Breakable, Sink]
) -> None:
    # given a reader that waits up to half a minute for a store that is away
    store, sink = followed
    store.cut()
    wait_until(lambda: len(sink.losses) > 5, "the store is away")
    # when it is back without its history
    write(store, [("d", b"1")])
    write(store, [("e", b"1")])
    store.compact()
    store.down = False
    # then the answer that leads to a listing does not cost such a pause again
    wait_until(lambda: ResyncReason.COMPACTED in sink.reasons, "it was listed again")
    assert isinstance(sink.losses[-1], CompactedError)
    assert pauses[-2:] == [30.0, 0.1]


def test_c13_a_store_that_is_listed_in_vain_again_and_again_is_asked_less_and_less(pauses: list[float]) -> None:
    # given a store whose history is always gone just after it was listed
    class Forgets(Breakable):
        def stream(self, prefix: str, after: int) -> Any:
            raise CompactedError("gone")

    sink = Sink()
    reader = StoreReader(Forgets(), "", sink)
    reader.start()
    # then only the first two pauses are short
    wait_until(lambda: len(pauses) >= 6, "it was listed again and again")
    reader.close()
    assert pauses[:6] == [0.1, 0.1, 30.0, 30.0, 30.0, 30.0]


def test_c13_a_store_that_lost_just_its_last_commit_is_found_without_another_one(
    followed: tuple[Breakable, Sink],
) -> None:
    # given a reader that has seen revision 4
    store, sink = followed
    # when the store comes back at 3, and nobody writes to it
    store.cut()
    store.rewind(3)
    store.down = False
    # then the reader does not wait for 4 to come again
    wait_until(lambda: ResyncReason.REWOUND in sink.reasons, "the rewind was told")
    assert sink.snapshots[-1][1:] == (3, {"a": (2, b"1"), "b": (3, b"1")})


def test_c13_what_interrupts_the_listing_after_a_rewind_does_not_hide_it(followed: tuple[Breakable, Sink]) -> None:
    # given a store that was wiped
    store, sink = followed
    store.cut()
    store.rewind(1)
    write(store, [("z", b"1")])
    # when the listing that follows is broken by a compaction, between two pages
    store.pages = [CompactedError("the page is gone")]
    store.down = False
    # then the next one still says that the store went back
    wait_until(lambda: len(sink.snapshots) == 2, "the store was listed again")
    assert sink.reasons == [ResyncReason.INITIAL, ResyncReason.REWOUND]


def test_c13_a_store_that_goes_back_before_it_is_listed_for_another_reason(followed: tuple[Breakable, Sink]) -> None:
    # given a reader that must list again because history is gone
    store, sink = followed
    store.cut()
    write(store, [("d", b"1")])
    write(store, [("e", b"1")])
    store.compact()
    scans: list[str] = []
    listed = type(store).scan

    def wiped_first(prefix: str, *, keys_only: bool = False) -> Scan:
        if not scans:
            store.rewind(1)
        scans.append(prefix)
        return listed(store, prefix, keys_only=keys_only)

    # when the store is wiped in the moment before the listing
    store.scan = wiped_first  # type: ignore[method-assign]
    store.down = False
    # then the snapshot, whose revision is lower, says so (I4)
    wait_until(lambda: len(sink.snapshots) == 2, "the store was listed again")
    assert (sink.reasons[-1], sink.snapshots[-1][1]) == (ResyncReason.REWOUND, 1)


def test_c13_without_history_a_stream_that_ends_without_a_word_is_followed_by_a_listing() -> None:
    # given a store that keeps no history
    class Forgetful(Breakable):
        capabilities = Breakable.capabilities - {Capability.HISTORY}

    store, sink = Forgetful(), Sink()
    reader = StoreReader(store, "", sink)
    reader.start()
    wait_until(lambda: store.streams, "the store is followed")
    # when its stream ends, and something is written before the next one
    write(store, [("a", b"1")])
    for stream in list(store.streams):
        stream.cancel()
    # then it is listed: what came between cannot be streamed
    wait_until(lambda: ResyncReason.RECONNECTED in sink.reasons, "the store was listed again")
    reader.close()


def test_c13_a_rewind_is_not_renamed_by_what_follows_before_it_is_delivered() -> None:
    # given a subscriber that is still busy when the source goes back
    with Registry("store", sourced=True, timeouts=HURRIED) as mirror:
        mirror.feed_snapshot(9, {"k": (9, b"{}")}, ResyncReason.INITIAL)
        queue: Queue[Any] = Queue()
        mirror.watch("w", queue, queue, "")
        first = take(queue)
        # when the source is listed again for another reason as well
        mirror.feed_snapshot(3, {"k": (2, b"{}")}, ResyncReason.REWOUND)
        mirror.feed_snapshot(5, {"k": (4, b"{}")}, ResyncReason.COMPACTED)
        first.done()
        # then the one RESYNC that comes says why its revision is lower (I4)
        event = take(queue)
        assert (event.reason, event.revision) == (ResyncReason.REWOUND, 5)
        event.done()


def test_c13_a_rewind_that_was_refused_is_told_again_as_a_rewind() -> None:
    # given a subscriber that refuses the RESYNC after a rewind, or whose queue was broken when it came
    with Registry("store", sourced=True, timeouts=HURRIED) as mirror:
        mirror.feed_snapshot(9, {}, ResyncReason.INITIAL)
        queue: Queue[Any] = Queue()
        mirror.watch("w", queue, queue, "")
        take(queue).done()
        mirror.feed_snapshot(3, {}, ResyncReason.REWOUND)
        take(queue).done(ValueError("not now"))
        # then the next one, whose revision is still lower than what was applied, says why (I4)
        event = take(queue)
        assert (event.reason, event.revision) == (ResyncReason.REWOUND, 3)
        event.done()


def test_c10_a_change_that_is_handled_after_a_newer_resync_is_delivered_again() -> None:
    # given a consumer with two queues that left a CHANGE lying until it was given up
    clock = ManualClock()
    with Registry("store", sourced=True, clock=clock, timeouts=Timeouts()) as mirror:
        mirror.feed_snapshot(1, {}, ResyncReason.INITIAL)
        changes: Queue[Any] = Queue()
        resyncs: Queue[Any] = Queue()
        mirror.watch("w", changes, resyncs, "")
        take(resyncs).done()
        mirror.feed_changes(_batch(2, "k", b"old"))
        stale = take(changes)
        clock.advance(ABANDON_TIMEOUT)
        wait_until(lambda: mirror.status().subscriptions["w"].failed, "the CHANGE is abandoned")
        mirror.feed_changes(_batch(3, "k", b"new"))
        take(changes).done(ValueError("not now"))
        mirror.request_resync("w")
        assert take(resyncs).done()
        # when it handles the RESYNC first and the CHANGE after it, which leaves a view of the past
        assert stale.done() is False
        clock.advance(FAILURE_BACKOFF[1])
        # then it gets the key once more, and only once
        again = take(changes)
        assert again.redelivery
        assert [(one.get_key(), one.get_revision()) for one in again.get_changes()] == [("k", 3)]
        assert again.done()
        assert stale.done() is False
        clock.advance(FAILURE_BACKOFF[1])
        assert changes.empty()
        assert resyncs.empty()


def test_c10_a_pause_that_was_over_before_the_failure_is_not_the_pause_after_it() -> None:
    # given a RESYNC that was given up, and the one in its place
    clock = ManualClock()
    with Registry("store", sourced=True, clock=clock, timeouts=Timeouts()) as mirror:
        mirror.feed_snapshot(1, {}, ResyncReason.INITIAL)
        queue: Queue[Any] = Queue()
        mirror.watch("w", queue, queue, "")
        given_up = take(queue)
        clock.advance(ABANDON_TIMEOUT)
        wait_until(lambda: mirror.status().subscriptions["w"].failed, "the RESYNC is given up")
        clock.advance(2 * FAILURE_BACKOFF[0])
        replacement = take(queue)
        # when the late answer asks for one more, whose pause ends while the other is still out, and that is refused
        assert given_up.done() is False
        pause = mirror.status().subscriptions["w"].resync_in
        assert pause is not None
        clock.advance(pause + 0.001)
        replacement.done(ValueError("no"))
        # then a pause follows the failure
        assert queue.empty()
        pause = mirror.status().subscriptions["w"].resync_in
        assert pause is not None
        assert pause > 1.0


def test_c7_a_late_answer_to_a_delete_of_nothing_offers_nothing() -> None:
    # given a key that is told of again after its delete, whose redelivery has no value before, and is given up
    clock = ManualClock()
    with Registry("store", sourced=True, clock=clock, timeouts=Timeouts()) as mirror:
        mirror.feed_snapshot(1, {}, ResyncReason.INITIAL)
        changes: Queue[Any] = Queue()
        resyncs: Queue[Any] = Queue()
        mirror.watch("w", changes, resyncs, "")
        take(resyncs).done()
        mirror.feed_changes(_batch(2, "k", b"1"))
        take(changes).done(ValueError("no"))
        mirror.feed_changes(Batch(3, [Commit(3, [("k", None)])]))
        take(changes).done(ValueError("no"))
        clock.advance(2 * FAILURE_BACKOFF[0])
        again = take(changes)
        assert [one.get_prev_value(BytesValue()) for one in again.get_changes()] == [False]
        clock.advance(ABANDON_TIMEOUT)
        wait_until(lambda: mirror.status().subscriptions["w"].failed == 3, "the redelivery is given up")
        # when a RESYNC tells of the key, and the answer comes after that
        mirror.request_resync("w")
        listed = take(resyncs)
        assert [kv.get_key() for kv in listed.get_removed()] == ["k"]
        assert listed.done()
        assert again.done() is False
        mirror.request_resync("w")
        # then the next one lists no value that the key never had
        assert list(take(resyncs).get_removed()) == []


def _batch(revision: int, key: str, value: bytes) -> Batch:
    return Batch(revision, [Commit(revision, [(key, value)])])


def test_c13_a_memory_store_that_was_emptied_and_has_grown_again_is_found_out() -> None:
    # given a stream that starts where a listing ended
    store = MemoryStore()
    with store:
        write(store, [("a", b"1")])
        listed = store.scan("").revision
        # when the store loses everything, and its revision passes the listed one before anybody looks
        store.rewind()
        for number in range(5):
            write(store, [(f"b{number}", b"1")])
        # then the stream does not go on as if nothing had happened
        with pytest.raises(RewoundError):
            next(iter(store.stream("", listed)))
        # and after another listing it does
        assert next(iter(store.stream("", store.scan("").revision))) == Batch(6, ())


class Occupied(Queue[Any]):
    """A queue that lets something happen during a put, and then has no room for it, once."""

    def __init__(self) -> None:
        super().__init__()
        self.meanwhile: Callable[[], object] | None = None

    def put_nowait(self, item: Any) -> None:
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            meanwhile()
            raise Full
        super().put_nowait(item)


@pytest.mark.parametrize("asked_again", [False, True])
def test_c7_a_delete_while_a_resync_is_put_in_vain_is_listed_in_the_next_one(asked_again: bool) -> None:
    # given a subscriber that was offered a key
    with Registry() as registry:
        queue = Occupied()
        registration = registry.watch("w", queue, queue, "")
        registry.submit_changes({"k": Change("k", BytesValue(value=b"1"))})
        take(queue).done()
        futures: list[PropagationFuture] = []

        # when the key is deleted during the put of a RESYNC that finds the queue full
        def meanwhile() -> None:
            futures.append(registry.submit_changes({"k": Change("k", op=Op.DELETE)}))
            if asked_again:
                futures.append(registry.request_resync("w"))

        queue.meanwhile = meanwhile
        futures.append(registry.request_resync("w"))
        # then the RESYNC that gets out tells of it, and answers everybody
        event = take(queue)
        assert [kv.get_key() for kv in event.get_removed()] == ["k"]
        assert event.done()
        assert [future.done() for future in futures] == [True] * len(futures)
        assert queue.empty()
        registration.close()
