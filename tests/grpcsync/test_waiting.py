"""Read your writes over gRPC: the revisions of the receiver, and its subscribers (C21)."""

from __future__ import annotations

from queue import Queue
from typing import Any

import pytest

from datasync.errors import AggregateError, ClosedError, DoneTimeout, PropagationError, UnsupportedError
from datasync.grpcsync import Client, Server
from datasync.syncbase.msg import DEL, DataChangeReply, DataChangeRequest
from tests.conftest import PATIENT, take
from tests.grpcsync.support import Subscriber, Wire
from tests.support.registries import text


def test_c21_every_reply_has_the_revision_of_the_receiver(server: Server, client: Client) -> None:
    registry = server.adapter.registry
    with Subscriber() as one:
        registration = server.adapter.watch("agent", one.queue, one.queue)
        for write in (
            lambda: client.put("k/a", text("1")),
            lambda: client.put_async("k/a", text("2")).result(PATIENT),
            lambda: client.delete("k/a"),
            lambda: client.resync({"k/b": text("1")}),
            lambda: client.delete("k/b"),
        ):
            before = registry.revision
            written = write()
            assert written
            assert written.revision == registry.revision > before
            registration.wait_synced(written, PATIENT)
            registry.wait_for(written, PATIENT)
        # and a delete of nothing is false, at the revision at which there was nothing
        nothing = client.delete("k/b")
        assert not nothing
        assert nothing.revision == registry.revision


def test_c21_a_reply_of_a_rejection_has_no_revision_and_one_of_a_peer_of_old_means_none(
    server: Server, wire: Wire
) -> None:
    def refuse(event: Any) -> None:
        raise ValueError("no")

    with Subscriber(refuse) as one:
        server.adapter.watch("agent", one.queue, one.queue)
        (reply,) = wire.changes(DataChangeRequest(key="k", content=b'"1"'))
        assert reply.result != 0
        assert reply.revision == 0
    assert DataChangeReply(key="k", operationType=DEL).revision == 0


def test_c21_the_subscriber_of_several_sources_is_waited_for_in_all_of_them(server: Server, client: Client) -> None:
    events: Queue[Any] = Queue()
    with Client(server.address, source="other") as other:
        registration = server.adapter.watch("agent", events, events)
        registration.wait_synced(timeout=PATIENT)
        first = client.put_async("k/a", text("1"))
        take(events).done()
        second = other.put_async("k/b", text("1"))
        event = take(events)
        with pytest.raises(AggregateError) as late:
            registration.wait_synced(timeout=0.01)
        assert [type(error) for error in late.value.errors] == [DoneTimeout]
        event.done(ValueError("no"))
        with pytest.raises(AggregateError) as failed:
            registration.wait_synced(timeout=PATIENT)
        assert [type(error) for error in failed.value.errors] == [PropagationError]
        written = first.result(PATIENT)
        assert second.exception(PATIENT)
        # and a revision of one of them says nothing of the other
        with pytest.raises(UnsupportedError, match="'agent' has several sources, each with revisions of its own"):
            registration.wait_synced(written)
        registration.close()
        with pytest.raises(ClosedError):
            registration.wait_synced()
