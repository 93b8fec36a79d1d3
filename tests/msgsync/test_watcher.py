"""A topic as a transport, over a broker in memory: C3, C7, C13, and the checks that no client does by itself."""

from __future__ import annotations

from collections.abc import Iterator
from queue import Queue
from typing import Any

import pytest

from datasync import KVProtoWatchers, codecs
from datasync.errors import InvalidArgumentError, MessagingError, NotReadyError, StoreConnectionError
from datasync.events import ResyncReason
from datasync.keyval import connect
from datasync.kvdbsync import Plugin as StorePlugin
from datasync.messaging import MemoryBroker, PartitionBounds
from datasync.messaging import memory as memory_broker
from datasync.msgsync import Plugin, Watcher, stream
from datasync.runtime import boot_clock
from datasync.runtime.timeouts import Timeouts
from datasync.syncbase.status import TransportState
from tests.conftest import PATIENT, take, wait_until
from tests.support.registries import is_resync, removed, state, text, told

QUICK = Timeouts(retry_backoff=(0.001, 0.02))


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"POLL": 0.02, "SILENCE": 0.05, "IDENTITY": 0.1, "BEHIND": 0.2}.items():
        monkeypatch.setattr(stream, name, value)
    monkeypatch.setattr(stream.PartitionReader.next, "__defaults__", (0.02,))


@pytest.fixture
def broker() -> Iterator[MemoryBroker]:
    with MemoryBroker() as made:
        made.create_topic("state")
        yield made


@pytest.fixture
def writer(broker: MemoryBroker) -> Iterator[Plugin]:
    with Plugin(broker, "state") as made:
        yield made


@pytest.fixture
def watcher(broker: MemoryBroker) -> Iterator[Watcher]:
    with Watcher(broker, "state", timeouts=QUICK) as made:
        made.wait_ready(PATIENT)
        yield made


def follow(watcher: Watcher) -> Queue[Any]:
    """A subscription whose first RESYNC is answered."""
    queue: Queue[Any] = Queue()
    watcher.watch("agent", queue, queue, "")
    event = take(queue)
    assert is_resync(event)
    event.done()
    return queue


def next_resync(queue: Queue[Any]) -> Any:
    """The next RESYNC; CHANGEs before it are accepted."""
    while not is_resync(event := take(queue)):
        event.done()
    return event


def away(broker: MemoryBroker, watcher: Watcher, *meanwhile: Any) -> None:
    """Let the broker fail until the watcher has noticed, and run *meanwhile* just before it comes back."""
    broker.fail_with(StoreConnectionError("the broker is away"))
    wait_until(lambda: watcher.status().state is TransportState.DOWN, "the loss was noticed")
    broker.fail_with(None)
    for happens in meanwhile:
        happens()


def test_the_state_up_to_the_end_is_a_resync_and_what_follows_are_changes(
    broker: MemoryBroker, writer: Plugin, watcher: Watcher
) -> None:
    # given a topic with a key that was put twice and one that was deleted
    writer.put("a", text("1"))
    writer.put("gone", text("1"))
    writer.put("a", text("2"))
    writer.delete("gone")
    with Watcher(broker, "state") as late:
        queue: Queue[Any] = Queue()
        late.watch("agent", queue, queue, "")
        # when it is watched / then the RESYNC has the last values, and the revision is the offset + 1
        event = take(queue)
        assert (state(event), event.revision, event.reason) == ({"a": "2"}, 4, ResyncReason.INITIAL)
        event.done()
        # and then each message is a change, a tombstone a delete
        writer.put("b", text("1"))
        event = take(queue)
        assert (told(event), event.revision) == ([("b", "1", None)], 5)
        event.done()
        writer.delete("a")
        event = take(queue)
        assert told(event) == [("a", None, "2")]
        event.done()


def test_c21_what_was_written_is_in_the_mirror_when_wait_for_returns(writer: Plugin, watcher: Watcher) -> None:
    watcher.wait_for(writer.put("a", text("1")), 20)
    found = watcher.get("a")
    assert found is not None
    assert found.get_revision() == 1
    watcher.wait_for(writer.delete("a"), 20)
    assert watcher.get("a") is None


def test_c13_after_a_loss_of_connection_it_goes_on_without_a_resync(
    broker: MemoryBroker, writer: Plugin, watcher: Watcher
) -> None:
    queue = follow(watcher)
    writer.put("a", text("1"))
    take(queue).done()
    away(broker, watcher)
    writer.put("b", text("1"))
    event = take(queue)
    assert told(event) == [("b", "1", None)]
    event.done()
    assert watcher.status().resyncs == {ResyncReason.INITIAL: 1}


def test_c13_a_last_message_that_was_compacted_meanwhile_does_not_lead_to_a_resync(
    broker: MemoryBroker, writer: Plugin, watcher: Watcher
) -> None:
    # given a watcher that has read a message
    queue = follow(watcher)
    writer.put("a", text("1"))
    take(queue).done()

    # when a later one of the same key takes its place while the watcher is away
    def replaced() -> None:
        broker.send("state", b"a", b'"2"').result()
        broker.compact("state")

    broker.fail_with(StoreConnectionError("the broker is away"))
    wait_until(lambda: watcher.status().state is TransportState.DOWN, "the loss was noticed")
    broker.fail_with(None)
    replaced()
    # then it goes on with the change
    event = take(queue)
    assert told(event) == [("a", "2", "1")]
    event.done()
    assert watcher.status().resyncs == {ResyncReason.INITIAL: 1}


def test_c13_a_topic_that_was_recreated_and_has_grown_past_is_read_anew(
    broker: MemoryBroker, writer: Plugin, watcher: Watcher
) -> None:
    queue = follow(watcher)
    writer.put("a", text("1"))
    take(queue).done()

    def recreated() -> None:
        broker.recreate("state")
        for number in range(5):
            broker.send("state", b"b", b'"%d"' % number).result()

    recreated()
    event = next_resync(queue)
    assert (event.reason, state(event)) == (ResyncReason.REWOUND, {"b": "4"})
    assert removed(event) == {"a": "1"}
    event.done()


def test_c13_a_log_that_lost_its_end_is_read_anew(broker: MemoryBroker, writer: Plugin, watcher: Watcher) -> None:
    queue = follow(watcher)
    for value in ("1", "2", "3"):
        writer.put("a", text(value))
    wait_until(lambda: watcher.registry.revision == 3, "all was read")
    broker.cut_off("state", 1)
    while not (is_resync(event := take(queue)) and state(event) == {"a": "1"}):
        event.done()
    assert event.reason is ResyncReason.REWOUND
    event.done()


def test_c13_a_trimmed_topic_is_listed_again(broker: MemoryBroker, writer: Plugin, watcher: Watcher) -> None:
    queue = follow(watcher)
    writer.put("a", text("1"))
    take(queue).done()

    def trimmed() -> None:
        for key in (b"b", b"c", b"d"):
            broker.send("state", key, b'"1"').result()
        broker.trim("state", 3)

    broker.fail_with(StoreConnectionError("the broker is away"))
    wait_until(lambda: watcher.status().state is TransportState.DOWN, "the loss was noticed")
    with broker._changed:
        broker._failure = None
        trimmed()
    event = next_resync(queue)
    assert (event.reason, state(event)) == (ResyncReason.COMPACTED, {"d": "1"})
    assert removed(event) == {"a": "1"}
    event.done()


def test_c7_a_tombstone_that_expired_while_it_was_away_is_seen_as_a_missed_delete(
    broker: MemoryBroker, writer: Plugin, watcher: Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a watcher that knows a key
    queue = follow(watcher)
    writer.put("a", text("1"))
    writer.put("b", text("1"))
    wait_until(lambda: watcher.registry.get("b"), "both are known")
    # when it is away for more than half of the retention, and the tombstone is removed
    broker.fail_with(StoreConnectionError("the broker is away"))
    wait_until(lambda: watcher.status().state is TransportState.DOWN, "the loss was noticed")
    later = boot_clock.now() + memory_broker.DELETE_RETENTION / 2 + 1
    monkeypatch.setattr(boot_clock, "now", lambda: later)
    with broker._changed:
        broker._failure = None
        broker.send("state", b"a", None).result()
        broker.compact("state", keep_tombstones=False)
    # then it lists again, and tells the delete
    event = next_resync(queue)
    assert (event.reason, state(event)) == (ResyncReason.COMPACTED, {"b": "1"})
    assert removed(event) == {"a": "1"}
    event.done()


def test_a_process_that_was_suspended_for_longer_than_tombstones_stay_lists_again(
    broker: MemoryBroker, writer: Plugin, watcher: Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = follow(watcher)
    writer.put("a", text("1"))
    wait_until(lambda: watcher.registry.get("a"), "it is known")
    take(queue).done()
    with broker._changed:  # nothing is polled meanwhile: the process stands still
        later = boot_clock.now() + memory_broker.DELETE_RETENTION
        monkeypatch.setattr(boot_clock, "now", lambda: later)
        broker.send("state", b"a", None).result()
        broker.compact("state", keep_tombstones=False)
    event = next_resync(queue)
    assert (event.reason, state(event), removed(event)) == (ResyncReason.COMPACTED, {}, {"a": "1"})
    event.done()


def test_c13_a_topic_at_rest_is_probed_and_never_listed_again(
    broker: MemoryBroker, writer: Plugin, watcher: Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a topic whose tombstones stay for three seconds, at rest for longer than that
    broker.create_topic("brief", delete_retention=3.0)
    with Watcher(broker, "brief", timeouts=QUICK) as other:
        other.wait_ready(PATIENT)
        start = boot_clock.now()
        wait_until(lambda: boot_clock.now() - start > 3.2, "some time has passed")
        assert other.status().resyncs == {}
        assert other.status().state is TransportState.READY
        silence = other.status().silence
        assert silence is not None
        assert silence < 5


def test_c13_a_broker_that_stands_still_is_found(
    broker: MemoryBroker, writer: Plugin, watcher: Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a broker that says nothing any more: polls return empty, questions time out
    def silent(*_: object) -> PartitionBounds:
        raise StoreConnectionError("no response within 4 s")

    monkeypatch.setattr(memory_broker._MemoryRecords, "bounds", silent)
    # then the watcher notices, and is back when it speaks again
    wait_until(lambda: watcher.status().state is TransportState.DOWN, "the loss was noticed")
    monkeypatch.undo()
    wait_until(lambda: watcher.status().state is TransportState.READY, "it is back")


def test_c13_a_log_whose_end_stays_below_what_was_read_is_read_anew(
    broker: MemoryBroker, writer: Plugin, watcher: Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a watcher at rest, and a broker that says that its log ends earlier, without an error
    queue = follow(watcher)
    writer.put("a", text("1"))
    take(queue).done()
    monkeypatch.setattr(memory_broker._MemoryRecords, "bounds", lambda *_: PartitionBounds(0, 0))
    # then it starts over, after a while in which a restarted broker finds its end
    event = next_resync(queue)
    assert event.reason is ResyncReason.REWOUND
    event.done()


def test_several_partitions_are_refused_and_one_of_them_can_be_followed(broker: MemoryBroker) -> None:
    broker.create_topic("many", 3)
    with pytest.raises(InvalidArgumentError, match="3 partitions, which have no common order"):
        Watcher(broker, "many").after_init()
    with pytest.raises(InvalidArgumentError, match="only 3 partitions"):
        Watcher(broker, "many", partition=3).after_init()
    with Plugin(broker, "many", partition=1) as writer, Watcher(broker, "many", partition=1) as watcher:
        writer.put("k", text("v"))
        wait_until(lambda: watcher.get("k"), "it is seen")


def test_a_topic_that_gets_more_partitions_is_an_error_and_not_a_half_truth(
    broker: MemoryBroker, writer: Plugin, watcher: Watcher
) -> None:
    broker._topics["state"].partitions.append(memory_broker._Partition())
    wait_until(lambda: watcher.status().state is TransportState.DOWN, "the loss was noticed")
    assert isinstance(watcher.status().last_error, InvalidArgumentError)
    del broker._topics["state"].partitions[1]
    wait_until(lambda: watcher.status().state is TransportState.READY, "it is back")


@pytest.mark.parametrize("topic", ["nope", "state"])
def test_c16_a_topic_that_is_not_there_is_named(broker: MemoryBroker, topic: str) -> None:
    if topic == "nope":
        with pytest.raises(MessagingError, match="'nope'"):
            Watcher(broker, topic).after_init()
        with pytest.raises(MessagingError, match="'nope'"):
            Plugin(broker, topic).after_init()


@pytest.mark.parametrize(
    "make",
    [
        lambda broker: Watcher(broker, ""),
        lambda broker: Watcher(broker, "a b"),
        lambda broker: Watcher(broker, None),
        lambda broker: Watcher(broker, "state", partition=-1),
        lambda broker: Watcher("kafka://host", "state"),
        lambda broker: Watcher(broker, "state", serializer=5),
        lambda broker: Plugin(broker, "state", codec=codecs),
        lambda broker: Plugin(broker, "x" * 300),
    ],
)
def test_c16_a_bad_argument_is_refused(broker: MemoryBroker, make: Any) -> None:
    with pytest.raises(InvalidArgumentError):
        make(broker)


def test_a_message_without_a_key_is_ignored_and_said_once(
    broker: MemoryBroker, writer: Plugin, watcher: Watcher, caplog: pytest.LogCaptureFixture
) -> None:
    stream._limited._lines.clear()
    queue = follow(watcher)
    for _ in range(3):
        broker.send("state", b"", b"x").result()
    writer.put("a", text("1"))
    event = take(queue)
    assert told(event) == [("a", "1", None)]
    event.done()
    assert caplog.text.count("has no key and is ignored") == 1


def test_a_topic_that_is_not_compacted_is_said(broker: MemoryBroker, caplog: pytest.LogCaptureFixture) -> None:
    stream._limited._lines.clear()
    broker.create_topic("events", compacted=False)
    with Watcher(broker, "events") as watcher:
        watcher.wait_ready(PATIENT)
    assert "cleanup.policy" in caplog.text


def test_a_store_and_a_topic_are_watched_as_one(broker: MemoryBroker, writer: Plugin, watcher: Watcher) -> None:
    # given an aggregate of a store's plugin and the watcher of a topic
    with connect("memory://") as store, StorePlugin(store) as plugin:
        queue: Queue[Any] = Queue()
        both = KVProtoWatchers(plugin, watcher)
        with both.watch("agent", queue, queue, ""):
            for _ in range(2):
                take(queue).done()
            # when each changes / then both changes come to the same queue
            plugin.put("from the store", text("1"))
            writer.put("from the topic", text("1"))
            seen = []
            for _ in range(2):
                event = take(queue)
                seen += told(event)
                event.done()
            assert sorted(seen) == [("from the store", "1", None), ("from the topic", "1", None)]


def test_a_codec_stands_for_the_values(broker: MemoryBroker) -> None:
    with Plugin(broker, "state", codec=codecs.json) as writer, Watcher(broker, "state", codec=codecs.json) as watcher:
        writer.put("k", {"mtu": 9000})
        wait_until(lambda: watcher.get("k"), "it is seen")
        found = watcher.get("k")
        assert found is not None
        assert found.value == {"mtu": 9000}


def test_c15_close_ends_a_listing_that_does_not_come_to_an_end(
    broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        memory_broker._MemoryRecords, "bounds", lambda self, *_: PartitionBounds(0, 10**6)
    )  # an end that never comes
    with Watcher(broker, "state", timeouts=QUICK) as watcher, pytest.raises(NotReadyError):
        watcher.wait_ready(0.1)
