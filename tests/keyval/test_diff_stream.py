"""The stream of a store without history: pictures become commits, and a break costs no RESYNC (C3, C13, I3)."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from queue import Queue
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasync.commits import Batch, Commit
from datasync.errors import ClosedError, CompactedError, DatasyncError, StoreConnectionError
from datasync.events import ResyncReason
from datasync.keyval.api import Store
from datasync.keyval.diff_stream import (
    KEPT_PICTURES,
    KEPT_PREFIXES,
    DiffStream,
    KnownPictures,
    Picture,
    PictureScan,
    PictureSource,
)
from datasync.keyval.driver import Scan, Stream
from datasync.keyval.types import Capability, CommitResult, Condition, KeyValue, RewoundError, WriteOp
from datasync.kvdbsync.plugin import Plugin
from datasync.runtime.timeouts import Timeouts
from tests.conftest import take, wait_until
from tests.support.registries import is_resync, state, told
from tests.support.stores import END, fold, following


class Drawn(Store):
    """A store without history, whose pictures the test draws."""

    capabilities: ClassVar[frozenset[Capability]] = frozenset()
    resumes = True

    def __init__(self, *, revisions: bool = False) -> None:
        self.changed = threading.Condition()  # guards the rest
        self.revisions = revisions
        self.pairs: dict[str, KeyValue] = {}
        self.revision = 1
        self.failure: DatasyncError | None = None
        self.known = KnownPictures()
        self.ended = 0

    def draw(self, revision: int | None = None, **values: bytes) -> int:
        """Show *values* from now on."""
        with self.changed:
            self.revision = self.revision + 1 if revision is None else revision
            number = self.revision if self.revisions else 0
            self.pairs = {
                key: old if (old := self.pairs.get(key)) and old.value == value else KeyValue(key, value, number)
                for key, value in values.items()
            }
            self.changed.notify_all()
            return self.revision

    def fail_with(self, error: DatasyncError | None) -> None:
        with self.changed:
            self.failure = error
            self.changed.notify_all()

    def picture(self, prefix: str) -> Picture:
        with self.changed:
            if self.failure is not None:
                raise self.failure
            return Picture(self.revision, {key: pair for key, pair in self.pairs.items() if key.startswith(prefix)})

    @property
    def name(self) -> str:
        return "drawn://"

    def check(self) -> None:
        pass

    def read(self, key: str) -> KeyValue | None:
        return self.pairs.get(key)

    def scan(self, prefix: str, *, keys_only: bool = False) -> Scan:
        return PictureScan(self.known, prefix, self.picture(prefix), keys_only=keys_only)

    def commit(self, ops: Sequence[WriteOp], conditions: Sequence[Condition] = ()) -> CommitResult:
        raise NotImplementedError

    def stream(self, prefix: str, after: int) -> Stream:
        return DiffStream(DrawnSource(self, prefix), self.known, prefix, after, name=self.name)

    def close(self) -> None:
        self.fail_with(ClosedError("drawn:// is closed"))


class DrawnSource(PictureSource):
    def __init__(self, store: Drawn, prefix: str) -> None:
        self._store = store
        self._prefix = prefix
        self._seen = 0
        self._woken = False

    def picture(self) -> Picture:
        picture = self._store.picture(self._prefix)
        self._seen = picture.revision
        return picture

    def wait(self, seconds: float) -> bool:
        store = self._store
        with store.changed:
            if store.failure is None and store.revision == self._seen and not self._woken:
                store.changed.wait(seconds)
            return store.failure is not None or store.revision != self._seen or self._woken

    def wake(self) -> None:
        with self._store.changed:
            self._woken = True
            self._store.changed.notify_all()

    def close(self) -> None:
        self._store.ended += 1


@pytest.fixture(params=["pairs with revisions", "pairs without"])
def store(request: pytest.FixtureRequest) -> Drawn:
    return Drawn(revisions=request.param == "pairs with revisions")


def commits(batches: list[Batch]) -> list[Commit]:
    return [commit for batch in batches for commit in batch.commits]


def test_c4_a_difference_is_one_commit_of_deletes_and_puts(store: Drawn) -> None:
    # given a stream that follows a listing
    store.draw(b=b"1", a=b"1", stays=b"1", changes=b"1")
    with following(store, "", store.scan("").revision) as follower:
        assert take(follower.queue) == Batch(2, ())
        # when keys go, come and change at once
        last = store.draw(stays=b"1", changes=b"2", new=b"")
        # then that is one commit: deletes first, then puts, each in key order
        (commit,) = commits(follower.until(last))
    assert commit == Commit(last, [("a", None), ("b", None), ("changes", b"2"), ("new", b"")])


def test_c3_what_changed_between_listing_and_stream_comes_first(store: Drawn) -> None:
    store.draw(a=b"1")
    listed = store.scan("").revision
    last = store.draw(b=b"1")
    with following(store, "", listed) as follower:
        assert take(follower.queue) == Batch(last, [Commit(last, [("a", None), ("b", b"1")])])


def test_a_stream_tells_only_of_its_prefix_and_of_every_revision(store: Drawn) -> None:
    store.draw(a1=b"1", b1=b"1")
    with following(store, "a", store.scan("a").revision) as follower:
        take(follower.queue)
        outside = store.draw(a1=b"1", b1=b"2")
        assert follower.until(outside)[-1] == Batch(outside, ())
        last = store.draw(a1=b"2")
        assert commits(follower.until(last)) == [Commit(last, [("a1", b"2")])]


def test_an_idle_stream_yields_none_about_each_second(store: Drawn) -> None:
    stream = store.stream("", store.scan("").revision)
    batches = iter(stream)
    assert next(batches) == Batch(1, ())
    assert next(batches) is None
    stream.cancel()
    assert list(batches) == []


def test_i3_a_stream_continues_after_a_break_with_one_commit(store: Drawn) -> None:
    # given a stream that broke
    store.draw(a=b"1", b=b"1")
    with following(store, "", store.scan("").revision) as follower:
        last = store.draw(a=b"2", b=b"1")
        follower.until(last)
        store.fail_with(StoreConnectionError("the store is away"))
        assert isinstance(follower.ending(), StoreConnectionError)
    # when the store is back, after changes / then the next stream has them as one commit
    store.fail_with(None)
    now = store.draw(a=b"3")
    with following(store, "", last) as follower:
        assert take(follower.queue) == Batch(now, [Commit(now, [("b", None), ("a", b"3")])])
    assert store.ended == 2


def test_c13_a_stream_from_a_picture_that_is_not_known_must_list_again(store: Drawn) -> None:
    # given a revision of which only another prefix, or only the keys, were listed, and one that was forgotten
    store.draw(a=b"1")
    store.scan("a")
    listed = [store.scan("", keys_only=True).revision]
    store.draw(a=b"2")
    listed.append(store.scan("").revision)
    store.known.forget()
    store.draw(a=b"3")
    for after in (1, *listed):
        with following(store, "", after) as follower:
            assert isinstance(follower.ending(), CompactedError)
    # and the revision of now, which needs no past
    with following(store, "", store.revision) as follower:
        assert take(follower.queue) == Batch(store.revision, ())
        last = store.draw(b=b"1")
        assert commits(follower.until(last)) == [Commit(last, [("a", None), ("b", b"1")])]


def test_i12_what_is_remembered_is_bounded(store: Drawn) -> None:
    # given more prefixes, and more pictures of each, than are remembered
    for number in range(KEPT_PREFIXES + 5):
        store.scan(f"p{number}")
    revisions = [store.draw(a=b"%d" % number) for number in range(KEPT_PICTURES + 3) if store.scan("p9") or True]
    # then the newest are there, and the others are gone
    assert [store.known.find(f"p{number}", 1) is None for number in (0, 4, 9, 10, KEPT_PREFIXES + 4)] == [
        *(True, True, True, False, False)
    ]
    assert store.known.find("p9", revisions[-2]) == {}
    assert store.known.find("p9", revisions[-2 - KEPT_PICTURES]) is None


def test_c13_a_source_that_goes_back_is_rewound(store: Drawn) -> None:
    store.draw(revision=9, a=b"1")
    with following(store, "", store.scan("").revision) as follower:
        take(follower.queue)
        store.draw(revision=5, a=b"1")
        assert isinstance(follower.ending(), RewoundError)


def test_c23_another_value_under_the_same_revision_is_a_change() -> None:
    # given a store that is restored from a copy, and grows again to the revision that was seen
    store = Drawn(revisions=True)
    store.draw(revision=7, a=b"1")
    listed = store.scan("").revision
    store.pairs = {"a": KeyValue("a", b"2", 7)}
    store.revision = 8
    with following(store, "", listed) as follower:
        assert take(follower.queue) == Batch(8, [Commit(8, [("a", b"2")])])


def test_c15_cancel_ends_a_stream_before_it_begins_and_while_it_waits(store: Drawn) -> None:
    stream = store.stream("", store.scan("").revision)
    stream.cancel()
    assert list(stream) == []
    with following(store, "", 1) as follower:
        take(follower.queue)
        follower.stream.cancel()
        assert follower.ending() == END


def test_c15_a_stream_that_is_cancelled_ends_without_the_error_of_its_source(store: Drawn) -> None:
    with following(store, "", store.scan("").revision) as follower:
        take(follower.queue)
        follower.stream.cancel()
        store.close()
        assert follower.ending() == END


VALUES = st.dictionaries(st.sampled_from("abcde"), st.sampled_from([b"", b"1", b"2"]))


@given(st.lists(st.tuples(VALUES, st.booleans()), min_size=1, max_size=8), st.sampled_from(["", "a"]), st.booleans())
def test_i3_any_pictures_fold_to_the_last_one_with_breaks_in_between(
    drawn: list[tuple[dict[str, bytes], bool]], prefix: str, revisions: bool
) -> None:
    # given a listing
    store = Drawn(revisions=revisions)
    store.draw(**drawn[0][0])
    position = store.scan(prefix).revision
    view = {key: value for key, value in drawn[0][0].items() if key.startswith(prefix)}
    batches: Iterator[Batch | None] = iter(store.stream(prefix, position))
    # when pictures follow, with a break before some of them
    for values, breaks in drawn:
        if breaks:
            batches = iter(store.stream(prefix, position))
        store.draw(**values)
        batch = next(batches)
        assert batch is not None
        while batch.revision < store.revision:  # the first one of a stream may be of the picture before
            batch = next(batches)
            assert batch is not None
        # then each batch leads to the picture
        view, position = fold([batch], view), batch.revision
        assert view == {key: value for key, value in values.items() if key.startswith(prefix)}


HURRIED = Timeouts(retry_backoff=(0.001, 0.01))


@pytest.mark.parametrize("forgets", [False, True])
def test_c13_a_break_costs_a_subscriber_no_resync_where_the_picture_is_known(forgets: bool) -> None:
    # given a subscriber to a store that is lost
    store, queue = Drawn(), Queue[Any]()
    store.draw(a=b'"1"', b=b'"1"')
    with Plugin(kv=store, timeouts=HURRIED) as plugin:
        plugin.watch("agent", queue, queue)
        first = take(queue)
        first.done()
        store.fail_with(StoreConnectionError("the store is away"))
        wait_until(lambda: plugin.status().last_error is not None, "the loss was noticed")
        # when it is back with other keys
        store.draw(b=b'"2"')
        if forgets:
            store.known.forget()
        store.fail_with(None)
        event = take(queue)
        # then they come as a change; where the picture was lost, a RESYNC says why
        if forgets:
            assert (is_resync(event), event.reason, state(event)) == (True, ResyncReason.RECONNECTED, {"b": "2"})
        else:
            assert (is_resync(event), told(event)) == (False, [("a", None, "1"), ("b", "2", "1")])
        event.done()
