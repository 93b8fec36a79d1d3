"""Read your writes over REST: the revisions of a client, its mirror, and the subscribers of a server (C21)."""

from __future__ import annotations

from queue import Queue
from typing import Any

import pytest

from datasync.errors import DoneTimeout, NotReadyError, PropagationError, UnknownOutcome
from datasync.kvdbsync.local import ProtoTxn
from datasync.restsync import Adapter, Client, Server, serve
from datasync.syncbase.change import ChangeBytes
from tests.conftest import PATIENT, take, wait_until
from tests.restsync.support import Subscriber
from tests.support.registries import plain, text


def mirrored(client: Client, key: str) -> str | None:
    pair = client.registry.get(key)
    return None if pair is None else plain(pair.get_value(text("")))


def test_c21_a_client_waits_for_its_mirror(adapter: Adapter, client: Client, subscriber: Subscriber) -> None:
    # given a client that watches nothing yet
    written = client.put("net/a", text("0"))
    with pytest.raises(NotReadyError, match="when something is watched"):
        client.wait_for(written)
    events: Queue[Any] = Queue()
    with client.watch("w", events, events) as registration:
        client.wait_for(written, PATIENT)
        take(events).done()
        # when it writes / then the results have the revisions of the server
        for number in range(10):
            written = client.put("net/a", text(str(number)))
            assert written
            assert written.revision == adapter.registry.revision
            client.wait_for(written, PATIENT)
            assert mirrored(client, "net/a") == str(number)
            take(events).done()
            registration.wait_synced(written, PATIENT)
        outcome = ProtoTxn(client.propagate_changes).put("net/b", text("1")).delete("net/a").commit()
        client.wait_for(outcome, PATIENT)
        assert (mirrored(client, "net/a"), mirrored(client, "net/b")) == (None, "1")
        client.wait_for(client.resync({"net/c": text("1")}), PATIENT)
        assert mirrored(client, "net/b") is None


def test_c17_c21_a_delete_tells_truly_and_has_a_revision(
    adapter: Adapter, server: Server, client: Client, subscriber: Subscriber
) -> None:
    with Client(server.url, prefix="net/") as other:
        other.watch("w", None, Queue())
        client.put("net/a", text("1"))
        deleted, nothing = other.delete("a"), other.delete("a")
        assert (bool(deleted), bool(nothing)) == (True, False)
        assert deleted.revision == nothing.revision == adapter.registry.revision
        other.wait_for(deleted, PATIENT)
        # and a delete of nothing does not wait for the next heartbeat
        adapter.registry.submit_changes({})
        client.resync({"elsewhere": text("1")})
        other.wait_for(other.delete("a"), PATIENT)


def test_c21_a_server_that_was_started_anew_ends_the_wait(tmp_path: Any) -> None:
    # given a mirror of a server whose counter is high
    with Adapter("first") as first, serve("127.0.0.1:0", first) as server:
        address = f"127.0.0.1:{server.url.rpartition(':')[2].strip('/')}"
        client = Client(server.url, timeout=PATIENT)
        client.watch("w", None, Queue())
        with Subscriber(first, willing=True):
            for number in range(5):
                lost = client.put("k", text(str(number)))
            client.wait_for(lost, PATIENT)
    with client, Adapter("second") as second, Subscriber(second, willing=True), serve(address, second):
        # when another one takes its place
        written = client.put("k", text("new"))
        assert written.revision < lost.revision
        # then what is written to it is waited for, and what was written before may be lost
        client.wait_for(written, PATIENT)
        assert mirrored(client, "k") == "new"
        with pytest.raises(UnknownOutcome):
            client.wait_for(lost, PATIENT)


def test_c21_the_subscribers_of_a_server_can_be_waited_for(adapter: Adapter) -> None:
    events: Queue[Any] = Queue()
    with adapter.watch("w", events, events) as registration:
        future = adapter.registry.submit_changes({"k": ChangeBytes("k", b"1")})
        with pytest.raises(DoneTimeout):
            registration.wait_synced(timeout=0.01)
        take(events).done(ValueError())
        wait_until(future.done, "the caller is told")
        with pytest.raises(PropagationError, match="'k': ValueError"):
            registration.wait_synced(timeout=PATIENT)
