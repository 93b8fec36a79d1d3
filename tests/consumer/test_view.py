"""A view has the last good value of each key, whatever the transport."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from queue import Queue
from types import SimpleNamespace
from typing import Any

import pytest

from datasync import DatasyncError, KVProtoWatchers, ResyncReason, View, codecs
from datasync.consumer import ViewState
from datasync.consumer.view import live
from datasync.errors import ClosedError, InvalidArgumentError, NotReadyError, SubscriptionError, UnsupportedError
from datasync.syncbase import Registry
from tests.conftest import CANARY, PATIENT, take, wait_until
from tests.support.view_sources import Source, registry_source


@pytest.fixture
def view(feed: Source) -> Iterator[View[Any]]:
    feed.write({"flag/a": b'{"on":true}', "other": b"1"})
    with View(feed.watcher, "view", "flag/") as view:
        view.wait_synced(PATIENT)
        yield view


def test_c20_a_view_has_the_values_under_its_prefixes_and_follows_them(feed: Source, view: View[Any]) -> None:
    # given the first state
    assert view == {"flag/a": {"on": True}}
    assert (view.synced, view.stale, view.state) == (True, False, ViewState.READY)
    # when keys come, change and go
    feed.write({"flag/b": b"[1]"})
    feed.write({"flag/a": None})
    feed.write({"flag/b": b"[2]", "other": b"2"})
    # then the view does too
    wait_until(lambda: view == {"flag/b": [2]}, "the view has the last state")
    assert ("flag/a" in view, len(view), view.get("flag/a"), view.get("flag/a", 7)) == (False, 1, None, 7)
    with pytest.raises(KeyError):
        view["flag/a"]
    with pytest.raises(TypeError):
        view["flag/b"][0] = 5


def test_c20_a_bad_value_changes_nothing_but_the_problems_and_holds_up_nobody(
    feed: Source, view: View[Any], caplog: pytest.LogCaptureFixture
) -> None:
    # given
    caplog.set_level(logging.WARNING, "datasync")
    # when one key gets a bad value, a new one too, and a third a good one
    bad = f'{{"on": {CANARY}}}'.encode()
    feed.write({"flag/a": bad})
    feed.write({"flag/new": b"\xff"})
    feed.write({"flag/c": b"3"})
    # then the last good values stay, and the problems name the keys without a value
    wait_until(lambda: "flag/c" in view, "the good key arrives")
    assert view == {"flag/a": {"on": True}, "flag/c": 3}
    assert set(view.problems) == {"flag/a", "flag/new"}
    assert "line 1, column" in str(view.problems["flag/a"])
    assert "'flag/a'" in caplog.text
    # when they are mended or deleted
    feed.write({"flag/a": b'{"on":false}', "flag/new": None})
    # then nothing is wrong any more
    wait_until(lambda: not view.problems, "the problems are gone")
    assert view == {"flag/a": {"on": False}, "flag/c": 3}


def test_c10_a_bad_value_rejects_its_key_alone_and_for_good(memory: Source) -> None:
    # given
    memory.write({"a": b"bad", "b": b"1"})
    with View(memory.watcher, "view") as view:
        view.wait_synced(PATIENT)
        # then only that key is owed, and it is not delivered again before it changes
        status = wait_until(
            lambda: memory.watcher.status().subscriptions["view"].owed and memory.watcher.status(), "the key is owed"
        ).subscriptions["view"]
        assert {key: owed.next_in for key, owed in status.owed.items()} == {"a": None}
        assert status.resync_in is None


def test_c20_listeners_get_old_and_new_values_of_real_differences_only(feed: Source, view: View[Any]) -> None:
    # given a listener that raises, one that records and one that has ended
    events: Queue[Any] = Queue()
    view.on_change(lambda key, old, new: 1 / 0)
    view.on_change(lambda *change: events.put(change))
    ended = view.on_change(lambda *change: events.put("never"))
    ended()
    ended()
    # when a value changes, is written again in other words, changes its type alone, and goes
    feed.write({"flag/a": b'{"on":1}'})
    assert take(events) == ("flag/a", {"on": True}, {"on": 1})
    feed.write({"flag/a": b'{ "on" : 1 }'})
    feed.write({"flag/a": b'{"on":true}'})
    # then only the differences are told, after the view has them
    assert take(events) == ("flag/a", {"on": 1}, {"on": True})
    feed.write({"flag/a": None})
    assert take(events) == ("flag/a", {"on": True}, None)
    assert events.empty()


def test_c20_a_listener_is_called_without_a_lock_and_can_use_the_view(feed: Source, view: View[Any]) -> None:
    # given a listener that asks another thread to use the view, and closes it
    seen: Queue[Any] = Queue()

    def listener(key: str, old: Any, new: Any) -> None:
        other = threading.Thread(target=lambda: seen.put((dict(view.snapshot()), view.state, view.problems)))
        other.start()
        other.join(PATIENT)
        view.close()
        seen.put(view[key])

    view.on_change(listener)
    # when
    feed.write({"flag/a": b"5"})
    # then
    assert take(seen) == ({"flag/a": 5}, ViewState.READY, {})
    assert take(seen) == 5


def test_c20_a_snapshot_is_of_one_moment_and_transactions_are_never_torn(memory: Source) -> None:
    # given a view whose two keys always change together
    memory.write({"a": b"0", "b": b"0"})
    with View(memory.watcher, "view") as view:
        view.wait_synced(PATIENT)
        done = threading.Event()

        def write() -> None:
            for number in range(300):
                memory.write({"a": b"%d" % number, "b": b"%d" % number, f"k{number % 7}": None if number % 2 else b"1"})
            done.set()

        writer = threading.Thread(target=write)
        writer.start()
        # when it is read meanwhile / then both are equal in every snapshot, and no iteration fails
        torn = 0
        while not done.is_set():
            moment = view.snapshot()
            torn += moment["a"] != moment["b"]
            assert len(list(view.items())) >= 2
        writer.join()
        assert torn == 0
        wait_until(lambda: view["a"] == 299, "the last value arrives")
        assert view.snapshot() is view.snapshot()
        with pytest.raises(TypeError):
            view.snapshot()["a"] = 1  # type: ignore[index]


def test_c20_indexes_follow_the_values_and_a_failing_function_harms_one_key(feed: Source, view: View[Any]) -> None:
    # given an index that is made of values that are there, with one value, several, and an error for the rest
    view.index(
        "kind", lambda key, value: value["kinds"] if isinstance(value, dict) and "kinds" in value else value["on"]
    )
    assert view.by_index("kind", True) == {"flag/a": {"on": True}}
    # when
    feed.write({"flag/b": b'{"kinds":["x","y"]}', "flag/c": b"3", "flag/d": b'{"kinds":["y"]}'})
    # then
    wait_until(lambda: set(view.by_index("kind", "y")) == {"flag/b", "flag/d"}, "the index has the new keys")
    # when
    feed.write({"flag/b": b'{"kinds":["x"]}', "flag/d": None, "flag/a": b'{"on":false}'})
    # then
    wait_until(lambda: view.by_index("kind", "y") == {}, "the index has lost the old terms")
    wait_until(lambda: view.by_index("kind", True) == {}, "the index follows the changed key")
    assert set(view.by_index("kind", "x")) == {"flag/b"}
    with pytest.raises(InvalidArgumentError, match="no index 'other'"):
        view.by_index("other", 1)


def test_c20_an_empty_source_is_synced_too(feed: Source) -> None:
    with View(feed.watcher, "view", "nothing/") as view:
        view.wait_synced(PATIENT)
        assert (dict(view), view.state) == ({}, ViewState.READY)


def test_c12_an_aggregate_is_synced_when_each_member_is_and_no_resync_deletes_the_keys_of_another(
    memory: Source,
) -> None:
    # given two members with keys
    memory.write({"m": b"1"})
    with ExitStack() as stack:
        empty, third = registry_source(stack, "empty"), registry_source(stack, "third")
        third.write({"t": b"2"})
        with View(KVProtoWatchers(memory.watcher, empty.watcher, third.watcher), "view") as view:
            view.wait_synced(PATIENT)
            assert view == {"m": 1, "t": 2}
            # when one starts over / then the keys of the other stay
            memory.watcher.registry.request_resync("view").result(PATIENT)
            assert view == {"m": 1, "t": 2}


def test_c20_defaults_stand_for_keys_that_are_not_there(memory: Source) -> None:
    # given
    memory.write({"a": b"1"})
    changes: Queue[Any] = Queue()
    with View(memory.watcher, "view", defaults={"a": 10, "b": {"x": [1]}}) as view:
        view.wait_synced(PATIENT)
        assert view == {"a": 1, "b": {"x": [1]}}
        with pytest.raises(TypeError):
            view["b"]["x"].append(2)
        view.on_change(lambda *change: changes.put(change))
        # when a key with a default goes, and another comes with the value of its default
        memory.write({"a": None, "b": b'{"x":[1]}'})
        # then
        assert take(changes) == ("a", 1, 10)
        memory.write({"a": b"2"})
        assert take(changes) == ("a", 10, 2)


def test_c21_put_returns_when_the_view_has_the_value(memory: Source) -> None:
    with View(memory.watcher, "view", "p/") as view:
        view.wait_synced(PATIENT)
        for number in range(50):
            view.put("p/k", {"n": number}, timeout=PATIENT)
            assert view["p/k"] == {"n": number}
        with pytest.raises(InvalidArgumentError):
            view.put("p/k", {"n": float("nan")})
    with pytest.raises(ClosedError):
        view.put("p/k", 1)


def test_c21_put_needs_a_watcher_that_writes_and_must_not_wait_for_itself(memory: Source) -> None:
    with Registry("r") as registry, View(registry, "view") as view, pytest.raises(UnsupportedError):
        view.put("k", 1)
    problems: Queue[Any] = Queue()
    with View(memory.watcher, "view") as view:

        def listener(key: str, old: Any, new: Any) -> None:
            try:
                view.put("other", 1)
            except DatasyncError as error:
                problems.put(error)

        view.on_change(listener)
        memory.write({"k": b"1"})
        assert isinstance(take(problems), InvalidArgumentError)


def test_c20_settle_gathers_a_burst_and_a_value_that_returns_is_no_difference(memory: Source) -> None:
    # given a view whose first state came at once
    changes: Queue[Any] = Queue()
    memory.write({"a": b"1"})
    view: View[Any] = View(memory.watcher, "view", settle=(0.3, PATIENT))
    with view:
        view.wait_synced(PATIENT)
        view.on_changes(lambda differences: changes.put(dict(differences)))
        # when a burst comes, with a key that goes back to what it was
        memory.write({"a": b"2"})
        memory.write({"b": b"1"})
        memory.write({"a": b"1", "b": b"2"})
        # then it is told once, and without that key
        assert take(changes) == {"b": (None, 2)}
        assert view == {"a": 1, "b": 2}
        memory.write({"a": b"3"})
        wait_until(lambda: view["a"] == 3, "the last change is there")
    # and what waits at the close is told then
    assert take(changes) == {"a": (1, 3)}


@pytest.mark.parametrize("limit", [2, 0.5, 0])
def test_c20_max_delete_holds_back_a_resync_that_deletes_too_much(memory: Source, limit: float) -> None:
    # given a view of four keys, and a source that loses three of them while it is not looked at
    memory.write(dict.fromkeys("abcd", b"1"))
    with View(memory.watcher, "view", max_delete=limit) as view:
        view.wait_synced(PATIENT)
        memory.watcher.registry.feed_snapshot(100, {"a": (100, b"2")}, ResyncReason.COMPACTED)
        # then the rest of the RESYNC is applied, and the deletes are held
        wait_until(lambda: view["a"] == 2, "the RESYNC is applied")
        assert (set(view), view.held) == ({*"abcd"}, {*"bcd"})
        # when one comes back and the others are released
        memory.write({"b": b"3"})
        wait_until(lambda: view["b"] == 3, "the key is back")
        changes: Queue[Any] = Queue()
        view.on_change(lambda *change: changes.put(change))
        assert view.release() == 2
        # then they go
        assert (view.snapshot(), view.held) == ({"a": 2, "b": 3}, frozenset())
        assert {take(changes), take(changes)} == {("c", 1, None), ("d", 1, None)}


def test_c20_a_lost_source_makes_the_view_stale_and_it_goes_on_reading(memory: Source) -> None:
    # given
    memory.write({"a": b"1"})
    with View(memory.watcher, "view") as view, View(memory.watcher, "patient", max_stale=1e6) as patient:
        for one in (view, patient):
            one.wait_synced(PATIENT)
        ready = view.status()
        # when the source is lost
        memory.watcher.registry.source_lost(DatasyncError("no route"))
        # then the state says so, with the error, unless that is tolerated
        wait_until(lambda: view.state is ViewState.STALE, "the view is stale")
        status = view.status()
        assert (status.error_kind, status.error_text, view.stale, view["a"]) == ("DatasyncError", "no route", True, 1)
        assert status.error_time is not None
        assert ready.since <= status.error_time <= status.since
        assert (patient.state, patient.status().error_kind) == (ViewState.READY, "DatasyncError")
        # when it is back
        memory.write({"a": b"2"})
        # then all is well
        wait_until(lambda: view.state is ViewState.READY, "the view is ready again")
        assert view.status().error_kind is None


@pytest.mark.parametrize("step", [-3600.0, 3600.0])
def test_c20_a_step_of_the_wall_clock_makes_no_view_stale_and_keeps_none_fresh(
    memory: Source, monkeypatch: pytest.MonkeyPatch, step: float
) -> None:
    # given two views, one of which bears a lost source for a day
    with View(memory.watcher, "soon", max_stale=0.3) as soon, View(memory.watcher, "late", max_stale=86400) as late:
        for one in (soon, late):
            one.wait_synced(PATIENT)
        # when the source is lost, and the administrator sets the clock
        memory.watcher.close()
        assert late.state is ViewState.READY
        clock = SimpleNamespace(time=lambda: time.time() + 100 * step, monotonic=time.monotonic)
        monkeypatch.setattr(live, "time", clock)
        # then that is no time
        wait_until(lambda: soon.state is ViewState.STALE, "it is stale in time")
        assert late.state is ViewState.READY


def test_c20_a_view_whose_thread_has_ended_is_not_ready(memory: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    # given a view that bears a lost source for long
    memory.write({"a": b"1"})
    with View(memory.watcher, "view", max_stale=1e6) as view:
        view.wait_synced(PATIENT)

        def end() -> None:
            raise SystemExit("a fault of ours")

        # when its thread ends, which nobody planned
        monkeypatch.setattr(view._live, "_save", lambda flush=False: None if flush else end())
        memory.write({"a": b"2"})
        # then the view says so, as well as the source may be
        wait_until(lambda: view.state is ViewState.STALE, "it is stale")
        assert (view.status().error_kind, view.status().error_text) == ("SystemExit", "a fault of ours")


def test_c20_a_closed_source_is_a_stale_one(memory: Source) -> None:
    with View(memory.watcher, "view") as view:
        view.wait_synced(PATIENT)
        memory.watcher.close()
        assert (view.state, view.status().error_kind) == (ViewState.STALE, "ClosedError")


def test_c20_a_closed_view_can_be_read_and_frees_its_name(feed: Source, view: View[Any]) -> None:
    with pytest.raises(SubscriptionError):
        View(feed.watcher, "view")
    view.close()
    view.close()
    feed.write({"flag/a": b"0"})
    assert (view["flag/a"], view.state) == ({"on": True}, ViewState.CLOSED)
    with View(feed.watcher, "view") as again:
        again.wait_synced(PATIENT)


def test_c20_a_view_that_cannot_be_synced_says_why() -> None:
    with Registry("sourced", sourced=True) as registry, View(registry, "view") as view:
        registry.source_lost(DatasyncError("no route"))
        assert view.state is ViewState.ERROR
        with pytest.raises(NotReadyError, match=r"not synced within 0\.01 s: no route"):
            view.wait_synced(0.01)


@pytest.mark.parametrize(
    "wrong",
    [
        {"codec": object()},
        {"max_stale": -1},
        {"max_stale": float("nan")},
        {"max_delete": -0.1},
        {"settle": (2, 1)},
        {"settle": (0, float("inf"))},
    ],
)
def test_c20_wrong_options_are_refused(memory: Source, wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError):
        View(memory.watcher, "view", **wrong)
    with pytest.raises(InvalidArgumentError):
        View(object(), "view")  # type: ignore[arg-type]
    assert memory.watcher.status().subscriptions == {}


@dataclass(frozen=True)
class Limit:
    rate: int


class LimitCodec:
    """Of a user, who raises what he likes."""

    def encode(self, value: Limit) -> bytes:
        return b"%d" % value.rate

    def decode(self, data: bytes) -> Limit:
        return Limit(int(data))


def test_c19_a_codec_of_the_user_gives_typed_values_and_its_errors_name_no_value(memory: Source) -> None:
    memory.write({"a": b"5", "b": CANARY.encode()})
    with View(memory.watcher, "view", codec=LimitCodec()) as view:
        view.wait_synced(PATIENT)
        assert view["a"].rate == 5
        assert str(view.problems["b"]) == "the codec raised ValueError"
        view.put("b", Limit(6), timeout=PATIENT)
        assert (view["b"], dict(view.problems)) == (Limit(6), {})


class SlowCodec:
    """JSON; decoding waits for ``go_on`` and tells when it began."""

    def __init__(self) -> None:
        self.began, self.go_on = threading.Event(), threading.Event()

    def encode(self, value: Any) -> bytes:
        return codecs.json.encode(value)

    def decode(self, data: bytes) -> Any:
        self.began.set()
        self.go_on.wait(PATIENT)
        return codecs.json.decode(data)


def test_c20_a_listener_that_is_added_while_an_event_is_decoded_is_told_of_it(memory: Source) -> None:
    memory.write({"a": b"1"})
    codec = SlowCodec()
    with View(memory.watcher, "view", codec=codec) as view:
        assert codec.began.wait(PATIENT)
        changes: Queue[Any] = Queue()
        view.on_change(lambda *change: changes.put(change))
        codec.go_on.set()
        assert take(changes) == ("a", None, 1)


def test_c15_a_listener_that_wants_to_end_the_thread_stops_nothing(memory: Source) -> None:
    with View(memory.watcher, "view") as view:
        view.on_change(lambda *change: sys.exit(1))
        memory.write({"a": b"1"})
        memory.write({"a": b"2"})
        wait_until(lambda: view.get("a") == 2, "the view goes on")
