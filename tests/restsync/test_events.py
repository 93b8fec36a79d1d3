"""The event stream: shape, resume, heartbeats, bounds (C2–C4, C8)."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from queue import Queue
from typing import Any

import pytest

from datasync.errors import StoreError
from datasync.restsync import Adapter
from datasync.restsync.app.event_stream import StreamRequest, stream_events
from datasync.restsync.app.replay_buffer import ReplayBuffer
from datasync.restsync.client import event_source as reading
from datasync.restsync.client.event_source import EventParser
from datasync.runtime.threads import Worker
from datasync.syncbase.change import Change, ChangeResp
from tests.conftest import CANARY, take, wait_until
from tests.restsync.support import events_of
from tests.support.registries import changes, text
from tests.support.timing import at_most


class Stream:
    """A stream that is read in a thread: its events go to ``queue``, heartbeats as ``("heartbeat", None, id)``."""

    def __init__(self, adapter: Adapter, *prefixes: str, last_id: str = "", heartbeat: float = 30.0) -> None:
        self.queue: Queue[Any] = Queue()
        self._adapter = adapter
        self._ended = threading.Event()
        request = StreamRequest(prefixes or ("",), last_id, True, heartbeat)
        self._pieces = stream_events(adapter, request, self._ended.is_set)
        self._worker = Worker("test-stream", self._run)
        self._worker.start()

    def _run(self, worker: Worker) -> None:
        for piece in self._pieces:
            found = events_of(piece.decode())
            for event in found:
                self.queue.put(event)
            if not found and piece.startswith(b"id: "):
                self.queue.put(("heartbeat", None, piece.split()[1].decode()))

    def until(self, name: str) -> Any:
        while (event := take(self.queue))[0] != name:
            pass
        return event

    def close(self) -> None:
        self._ended.set()
        self._adapter.replay_buffer.wake()
        assert self._worker.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def commit(adapter: Adapter, **values: str | None) -> None:
    adapter.registry.propagate_changes(changes({key.replace("_", "/"): value for key, value in values.items()}))


@pytest.fixture
def small() -> Iterator[Adapter]:
    """Remembers three transactions."""
    with Adapter(history=3) as adapter:
        yield adapter


def test_c2_a_stream_begins_with_a_snapshot_and_goes_on_with_changes(adapter: Adapter) -> None:
    # given a key
    commit(adapter, net_a="1")
    with Stream(adapter) as stream:
        # when a stream is opened, and two more transactions come
        assert take(stream.queue) == ("resync", {"revision": 1, "reason": "initial"}, "")
        assert [item["key"] for item in take(stream.queue)[1]] == ["net/a"]
        assert take(stream.queue)[:2] == ("synced", {"revision": 1, "keys": 1})
        commit(adapter, net_a="2", net_b="3")
        commit(adapter, net_a=None)
        # then each comes whole, with an id
        name, document, identity = take(stream.queue)
        assert (name, document["revision"], identity) == ("change", 2, f"{adapter.instance}-2")
        assert {change["key"]: change["value"].removeprefix(CANARY) for change in document["changes"]} == {
            "net/a": "2",
            "net/b": "3",
        }
        assert take(stream.queue)[1]["changes"] == [{"op": "Delete", "key": "net/a", "revision": 3}]


def test_only_the_keys_under_its_prefixes_are_in_a_stream(adapter: Adapter) -> None:
    commit(adapter, a_1="", b_1="", c_1="")
    with Stream(adapter, "a/", "c/") as stream:
        assert stream.until("synced")[1]["keys"] == 2
        commit(adapter, b_1="x")
        commit(adapter, a_1="x", b_1="y")
        document = stream.until("change")[1]
        assert [change["key"] for change in document["changes"]] == ["a/1"]


def test_c3_a_stream_goes_on_after_the_id_that_it_is_given(adapter: Adapter) -> None:
    # given a stream that was broken after revision 2
    for value in "1234":
        commit(adapter, a=value)
    with Stream(adapter, last_id=f"{adapter.instance}-2") as stream:
        # when it comes back / then it gets what it missed, and no snapshot
        assert [take(stream.queue)[1]["revision"] for _ in range(2)] == [3, 4]


def test_c18_who_resumes_and_has_missed_nothing_is_told_so_at_once(adapter: Adapter) -> None:
    # given a stream that was broken, and nothing has come since, or nothing under its prefix
    commit(adapter, a="1")
    for last, revision in ((1, 1), (1, 2)):
        with Stream(adapter, "a", last_id=f"{adapter.instance}-{last}", heartbeat=60.0) as stream:
            # when it comes back / then it gets a sign of life, long before the next heartbeat is due
            assert take(stream.queue) == ("heartbeat", None, f"{adapter.instance}-{revision}")
        commit(adapter, b="2")


def test_a_stream_that_is_not_to_follow_ends_after_what_was_missed(adapter: Adapter) -> None:
    for value in "123":
        commit(adapter, a=value)
    # when an id is given and nothing is to be followed
    request = StreamRequest(("",), f"{adapter.instance}-2", False, 30.0)
    found = events_of(b"".join(stream_events(adapter, request, bool)).decode())
    # then what was missed comes, and the end
    assert [(name, document["revision"]) for name, document, _ in found] == [("change", 3)]


@pytest.mark.parametrize("last_id", ["x", "00000000-1", "-", "{0}-99", "{0}-x", "{0}-²", "{0}--1"])
def test_an_id_that_is_not_of_this_life_leads_to_a_resync(adapter: Adapter, last_id: str) -> None:
    commit(adapter, a="1")
    with Stream(adapter, last_id=last_id.format(adapter.instance)) as stream:
        assert take(stream.queue)[1]["reason"] in ("rewound", "compacted")
        assert stream.until("synced")[1]["revision"] == 1


def test_c8_an_id_that_is_too_old_leads_to_a_resync(small: Adapter) -> None:
    for value in "123456":
        commit(small, a=value)
    with Stream(small, last_id=f"{small.instance}-2") as stream:
        assert take(stream.queue)[1] == {"revision": 6, "reason": "compacted"}
    with Stream(small, last_id=f"{small.instance}-3") as stream:
        assert take(stream.queue)[1]["revision"] == 4


def test_c8_a_stream_that_is_read_too_slowly_starts_over_and_nothing_was_kept_for_it(small: Adapter) -> None:
    # given a reader that does not read
    pieces = stream_events(small, StreamRequest(("",), "", True, 0.1), lambda: False)
    seen = next(pieces).decode() + next(pieces).decode() + next(pieces).decode()
    # when more comes than is remembered
    for value in range(10):
        commit(small, a=str(value))
    # then it gets the state as it is now
    piece = next(pieces).decode()
    assert events_of(seen)[-1][0] == "synced"
    assert events_of(piece)[0][1] == {"revision": 10, "reason": "overflow"}
    pieces.close()  # type: ignore[attr-defined]


def test_a_full_state_is_a_resync_in_every_stream(adapter: Adapter) -> None:
    commit(adapter, a="1")
    with Stream(adapter) as stream:
        stream.until("synced")
        adapter.registry.propagate_resync({"b": Change("b", text("2"))})
        assert take(stream.queue)[1]["reason"] == "requested"
        assert [item["key"] for item in take(stream.queue)[1]] == ["b"]


def test_a_quiet_stream_is_told_how_far_the_others_are(adapter: Adapter) -> None:
    # given a stream under a prefix where nothing happens
    with Stream(adapter, "quiet/", heartbeat=0.05) as stream:
        stream.until("synced")
        commit(adapter, busy="1")
        # when the heartbeat comes / then it carries an id to resume from
        wait_until(lambda: stream.until("heartbeat")[2] == f"{adapter.instance}-1", "the heartbeat has moved on")


def test_c15_streams_end_with_their_adapter(adapter: Adapter) -> None:
    ended = threading.Event()
    pieces = stream_events(adapter, StreamRequest(("",), "", True, 30), lambda: adapter.closed)
    worker = Worker("test-stream", lambda worker: (list(pieces), ended.set()))  # type: ignore[arg-type, func-returns-value]
    worker.start()
    adapter.close()
    assert ended.wait(at_most(2))
    worker.close()


def test_the_ring_is_bounded_in_bytes_too() -> None:
    replay_buffer = ReplayBuffer(history=1000, history_bytes=1000)
    for revision in range(1, 30):
        change = ChangeResp(
            "k", next(iter(changes({"k": "v"}).values())).get_change_type(), revision, b"x" * 300, None, None
        )  # type: ignore[arg-type]
        replay_buffer.add(revision, [change])
    assert replay_buffer.after(1) is None
    kept = replay_buffer.after(28)
    assert kept is not None
    assert [entry.revision for entry in kept] == [29]


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_events_are_read_however_they_are_cut(size: int, ends: str) -> None:
    stream = ": hi\nretry: 1\n\nid: 1\nevent: a\ndata: {\ndata: }\n\nid: 2\n: beat\n\n".replace("\n", ends).encode()
    parser, found = EventParser(), []
    for place in range(0, len(stream), size):
        found += list(parser.feed(stream[place : place + size]))
    assert [(event.name, event.data, event.identity) for event in found] == [
        ("", "", ""),
        ("a", "{\n}", "1"),
        ("", "", "2"),
    ]


def test_c8_an_event_without_an_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_EVENT", 100)
    with pytest.raises(StoreError, match="more than 100 bytes"):
        list(EventParser().feed(b"data: " + b"x" * 200))
