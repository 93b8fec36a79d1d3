"""The multiplexer: publishers and watchers over one broker (GO_REFERENCE rows 76-81, D91-D95)."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from queue import Queue
from typing import Any

import pytest

from datasync import codecs
from datasync.errors import (
    ClosedError,
    DecodeError,
    InvalidArgumentError,
    MessagingError,
    StoreConnectionError,
    SubscriptionError,
)
from datasync.messaging import NEWEST, OLDEST, MemoryBroker, Mux, mux
from tests.conftest import take, wait_until
from tests.support.registries import plain, text


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mux, "RETRY_BACKOFF", (0.001, 0.01))


@pytest.fixture
def broker() -> Iterator[MemoryBroker]:
    with MemoryBroker("mux") as made:
        made.create_topic("one")
        made.create_topic("many", 3)
        yield made


@pytest.fixture
def connection(broker: MemoryBroker) -> Iterator[Mux]:
    with Mux(broker, "agents") as made:
        yield made


def test_a_watcher_receives_what_publishers_of_all_kinds_put(broker: MemoryBroker, connection: Mux) -> None:
    # given a watcher of a topic with three partitions
    received: Queue[Any] = Queue()
    connection.new_watcher("agent").watch(received.put, "many")
    connection.start()
    # when messages are put in every way
    assert connection.new_sync_publisher("many").put("k", text("hash")).topic == "many"
    assert connection.new_sync_publisher_to_partition("many", 2).put("k", text("manual")).partition == 2
    told: Queue[Any] = Queue()
    publisher = connection.new_async_publisher("many", on_success=lambda key, place: told.put((key, place)))
    future = publisher.put("k", text("async"))
    assert take(told) == ("k", future.result(5))
    connection.new_async_publisher_to_partition("many", 1).put("k", text("both")).result(5)
    # then all of them come once, each with its place
    messages = [take(received) for _ in range(4)]
    assert {plain(one.get_value(text(""))) for one in messages} == {"hash", "manual", "async", "both"}
    assert {(one.key, one.topic) for one in messages} == {("k", "many")}
    assert received.empty()


def test_d91_a_key_decides_on_the_partition_also_beside_manual_publishers(connection: Mux) -> None:
    connection.new_sync_publisher_to_partition("many", 0).put("x", text("v"))
    publisher = connection.new_sync_publisher("many")
    places = {key: publisher.put(key, text("v")).partition for key in ("a", "b", "c", "d", "e", "f")}
    assert len(set(places.values())) > 1, "they are spread"
    assert {key: publisher.put(key, text("w")).partition for key in places} == places, "and stay where they are"


def test_a_topic_is_watched_before_start_and_a_partition_at_any_time(broker: MemoryBroker, connection: Mux) -> None:
    connection.start()
    with pytest.raises(SubscriptionError, match=r"before start\(\)"):
        connection.new_watcher("late").watch(print, "one")
    received: Queue[Any] = Queue()
    connection.new_sync_publisher("one").put("before", text("v"))
    connection.new_partition_watcher("late").watch_partition(received.put, "one", 0, OLDEST)
    assert take(received).key == "before"


def test_a_partition_is_read_from_an_offset_or_from_the_newest_message_on(connection: Mux) -> None:
    publisher = connection.new_sync_publisher("one")
    for number in range(5):
        publisher.put(f"k{number}", text("v"))
    received: Queue[Any] = Queue()
    watcher = connection.new_partition_watcher("agent")
    watcher.watch_partition(received.put, "one", 0, 3)
    connection.start()
    assert [take(received).key for _ in range(2)] == ["k3", "k4"]
    watcher.stop_watch_partition("one", 0)
    watcher.watch_partition(received.put, "one", 0, NEWEST)
    publisher.put("new", text("v"))
    assert take(received).key == "new"


def test_d94_a_topic_has_one_watcher_and_only_it_can_stop_it(connection: Mux) -> None:
    first, second = connection.new_watcher("first"), connection.new_watcher("second")
    first.watch(print, "one")
    with pytest.raises(SubscriptionError, match="'first'"):
        second.watch(print, "many", "one")
    with pytest.raises(SubscriptionError, match="'first'"):
        connection.new_partition_watcher("third").watch_partition(print, "one", 0)
    with pytest.raises(SubscriptionError):
        second.stop_watch("one")
    second.watch(print, "many")  # the refused call left nothing behind
    first.stop_watch("one")
    second.watch(print, "one")


def test_d94_stop_ends_one_watch_and_leaves_the_others(broker: MemoryBroker, connection: Mux) -> None:
    one, many = Queue[Any](), Queue[Any]()
    watcher = connection.new_watcher("agent")
    watcher.watch(one.put, "one")
    watcher.watch(many.put, "many")
    connection.start()
    connection.new_sync_publisher("one").put("k", text("v"))
    take(one)
    watcher.stop_watch("one")
    connection.new_sync_publisher("one").put("k", text("v"))
    connection.new_sync_publisher("many").put("k", text("v"))
    take(many)
    assert one.empty()


def test_marked_offsets_are_committed_and_the_next_multiplexer_of_the_group_starts_after_them(
    broker: MemoryBroker, connection: Mux
) -> None:
    publisher = connection.new_sync_publisher("one")
    for number in range(4):
        publisher.put(f"k{number}", text("v"))
    received: Queue[Any] = Queue()
    watcher = connection.new_watcher("agent")
    watcher.watch(received.put, "one")
    connection.start()
    messages = [take(received) for _ in range(4)]
    watcher.mark_offset(messages[1], "half way")
    watcher.commit_offsets()
    connection.close()
    with Mux(broker, "agents") as again, Mux(broker, "others") as other:
        again.new_watcher("agent").watch(received.put, "one")
        again.start()
        assert [take(received).key for _ in range(2)] == ["k2", "k3"]
        fresh: Queue[Any] = Queue()
        other.new_watcher("agent").watch(fresh.put, "one")
        other.start()
        assert take(fresh).key == "k0", "a group without offsets starts with the oldest message"


def test_d93_a_slow_callback_loses_nothing_and_one_that_raises_stops_nothing(
    connection: Mux, caplog: pytest.LogCaptureFixture
) -> None:
    received: Queue[Any] = Queue()
    gate = threading.Event()

    def slow(message: Any) -> None:
        gate.wait(5)
        received.put(message)
        raise RuntimeError("a callback that is broken")

    connection.new_watcher("agent").watch(slow, "one")
    connection.start()
    publisher = connection.new_async_publisher("one")
    for number in range(50):
        publisher.put(f"k{number}", text("v"))
    gate.set()
    assert [take(received).key for _ in range(50)] == [f"k{number}" for number in range(50)]
    wait_until(lambda: len([one for one in caplog.records if "raised for" in one.message]) == 50, "each was logged")


def test_a_broker_that_comes_back_is_read_on_from_where_it_was(
    broker: MemoryBroker, connection: Mux, caplog: pytest.LogCaptureFixture
) -> None:
    received: Queue[Any] = Queue()
    connection.new_watcher("agent").watch(received.put, "one")
    connection.start()
    connection.new_sync_publisher("one").put("a", text("v"))
    take(received)
    broker.fail_with(StoreConnectionError("the broker is away"))
    wait_until(lambda: "retrying" in caplog.text, "the loss was noticed")
    broker.fail_with(None)
    connection.new_sync_publisher("one").put("b", text("v"))
    assert take(received).key == "b"
    assert caplog.text.count("is back after") == 1


def test_messages_that_were_trimmed_are_named_as_lost(
    broker: MemoryBroker, connection: Mux, caplog: pytest.LogCaptureFixture
) -> None:
    publisher = connection.new_sync_publisher("one")
    for number in range(4):
        publisher.put(f"k{number}", text("v"))
    broker.trim("one", 2)
    received: Queue[Any] = Queue()
    connection.new_partition_watcher("agent").watch_partition(received.put, "one", 0, 1)
    connection.start()
    assert take(received).key == "k2"
    assert "are lost" in caplog.text


def test_a_codec_stands_for_the_values_and_what_does_not_decode_is_told(broker: MemoryBroker) -> None:
    with Mux(broker, codec=codecs.json) as connection:
        received: Queue[Any] = Queue()
        connection.new_watcher("agent").watch(received.put, "one")
        connection.start()
        publisher = connection.new_sync_publisher("one")
        publisher.put("k", {"mtu": 9000})
        assert take(received).value == {"mtu": 9000}
        publisher.delete("k")
        gone = take(received)
        assert (gone.value, gone.raw) == (None, None)
        broker.send("one", b"k", b"{no json").result()
        with pytest.raises(DecodeError):
            _ = take(received).value


@pytest.mark.parametrize(
    "use",
    [
        lambda mux: mux.new_sync_publisher("").put("k", text("v")),
        lambda mux: mux.new_sync_publisher("a/b"),
        lambda mux: mux.new_sync_publisher("one").put("", text("v")),
        lambda mux: mux.new_sync_publisher("one").put("k", None),
        lambda mux: mux.new_sync_publisher("one").put("k", "no message"),
        lambda mux: mux.new_sync_publisher_to_partition("one", -1),
        lambda mux: mux.new_sync_publisher_to_partition("one", 7).put("k", text("v")),
        lambda mux: mux.new_async_publisher("one", on_error=5),
        lambda mux: mux.new_watcher("agent").watch(None, "one"),
        lambda mux: mux.new_watcher("agent").watch(print),
        lambda mux: mux.new_partition_watcher("agent").watch_partition(print, "one", 0, -5),
    ],
)
def test_c16_a_bad_argument_is_refused(connection: Mux, use: Any) -> None:
    with pytest.raises(InvalidArgumentError):
        use(connection)


def test_a_topic_that_is_not_there_fails_the_start_and_not_in_silence(connection: Mux) -> None:
    connection.new_watcher("agent").watch(print, "nope")
    with pytest.raises(MessagingError, match="'nope'"):
        connection.start()


def test_after_close_every_call_says_so(connection: Mux) -> None:
    connection.start()
    connection.close()
    connection.close()
    for use in (connection.start, lambda: connection.new_watcher("a").watch(print, "one")):
        with pytest.raises(ClosedError):
            use()
