"""The writer of a topic (C16-C18)."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from datasync import KVProtoWriters, codecs
from datasync.errors import ClosedError, InvalidArgumentError, NotReadyError, UnknownOutcome
from datasync.messaging import Delivered, MemoryBroker
from datasync.msgsync import Plugin
from datasync.options import with_client_lifetime_ttl, with_prefix, with_ttl
from tests.support.registries import as_json, text


@pytest.fixture
def broker() -> Iterator[MemoryBroker]:
    with MemoryBroker() as made:
        made.create_topic("state")
        yield made


@pytest.fixture
def writer(broker: MemoryBroker) -> Iterator[Plugin]:
    with Plugin(broker, "state") as made:
        yield made


def messages(broker: MemoryBroker) -> list[tuple[bytes | None, bytes | None]]:
    records = broker.consume()
    records.assign("state", 0, 0)
    return [(key, value) for _, _, _, key, value in records.poll(0).records]


def test_a_put_is_one_message_in_the_form_of_the_original(broker: MemoryBroker, writer: Plugin) -> None:
    writer.put("/vnf-agent/vpp1/if_state", text("up"))
    assert writer.put_raw("k", b"") == Delivered("state", 0, 1)
    assert writer.delete("k")
    assert messages(broker) == [(b"/vnf-agent/vpp1/if_state", as_json("up")), (b"k", b""), (b"k", None)]


def test_a_prefix_stands_before_every_key(broker: MemoryBroker) -> None:
    with Plugin(broker, "state", prefix="/agent/", codec=codecs.json) as writer:
        writer.put("k", [1])
        with pytest.raises(InvalidArgumentError):
            writer.put("", [1])
    assert messages(broker) == [(b"/agent/k", b"[1]")]


@pytest.mark.parametrize(
    "use",
    [
        lambda one: one.put("k", None),
        lambda one: one.put("k", "text"),
        lambda one: one.put("", text("v")),
        lambda one: one.put(None, text("v")),
        lambda one: one.put("\ud800x", text("v")),
        lambda one: one.put("k", text("v"), with_ttl(1)),
        lambda one: one.put("k", text("v"), with_client_lifetime_ttl()),
        lambda one: one.put("k", text("v"), with_prefix()),
        lambda one: one.put_raw("k", None),
        lambda one: one.put_raw("k", "text"),
        lambda one: one.delete("k", with_prefix()),
        lambda one: one.delete(""),
    ],
)
def test_c16_a_bad_write_is_refused_and_nothing_is_written(broker: MemoryBroker, writer: Plugin, use: Any) -> None:
    with pytest.raises(InvalidArgumentError):
        use(writer)
    assert messages(broker) == []


def test_it_says_when_it_is_not_started_and_when_it_is_closed(broker: MemoryBroker) -> None:
    writer = Plugin(broker, "state")
    with pytest.raises(NotReadyError, match="'k'"):
        writer.put("k", text("v"))
    writer.after_init()
    writer.close()
    writer.close()
    for use in (lambda: writer.put("k", text("v")), lambda: writer.delete("k")):
        with pytest.raises(ClosedError):
            use()
    assert messages(broker) == []


def test_c18_status_counts_what_became_of_the_messages(broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    with Plugin(broker, "state") as writer:
        writer.put("k", text("v"))
        writer.put("k", text("w"))
        lost: Future[Delivered] = Future()
        lost.set_exception(UnknownOutcome("no acknowledgement"))
        monkeypatch.setattr(broker, "send", lambda *_: lost)
        with pytest.raises(UnknownOutcome):
            writer.put("k", text("x"))
        status = writer.status()
    assert (status.acknowledged, status.failed, status.unknown, status.revision) == (2, 0, 1, 2)
    assert isinstance(status.last_error, UnknownOutcome)
    assert status.started
    assert not writer.status().started


def test_it_is_a_member_of_an_aggregate_of_writers(broker: MemoryBroker, writer: Plugin) -> None:
    both = KVProtoWriters(writer, writer)
    both.put("k", text("v"))
    assert both.delete("k")
    assert [key for key, _ in messages(broker)] == [b"k"] * 4
