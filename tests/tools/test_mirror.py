"""A mirror between two real stores: equal in the end, whatever happens to either of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from datasync.errors import InvalidArgumentError
from datasync.keyval.api import Store
from datasync.keyval.urls import connect
from datasync.tools.mirror import MirrorLoopError, MirrorState, PrefixMirror
from datasync.tools.mirror.record import RECORDS, MirrorRecord, record_key
from tests.conftest import wait_until
from tests.support.stores import state


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[tuple[Store, Store]]:
    with connect(f"sqlite://{tmp_path}/a.db") as source, connect(f"sqlite://{tmp_path}/b.db") as destination:
        yield source, destination


def copied(store: Store, prefix: str = "") -> dict[str, bytes]:
    """What is in *store* under *prefix*, without the prefix and the records."""
    return {key[len(prefix) :]: value for key, value in state(store, prefix).items() if not key.startswith(RECORDS)}


def record(store: Store, prefix: str) -> MirrorRecord:
    pair = store.read(record_key(prefix))
    assert pair is not None
    found = MirrorRecord.decode(pair.value)
    assert found is not None
    return found


def synced(mirror: PrefixMirror) -> None:
    wait_until(lambda: mirror.status().state is MirrorState.SYNCED, "in sync")


def equal(source: Store, destination: Store, source_prefix: str, prefix: str) -> None:
    wait_until(lambda: copied(destination, prefix) == copied(source, source_prefix), "both are equal")


def test_a_prefix_is_copied_under_another_one_and_followed(stores: tuple[Store, Store]) -> None:
    # given a source, and a destination with keys of its own
    source, destination = stores
    for key in ("a/1", "a/a/2", "b/3"):
        source.new_broker().put(key, key.encode())
    destination.new_broker().put("z/other", b"kept")
    destination.new_broker().put("z/1", b"old")
    destination.new_broker().put("y", b"not ours")
    # when it is mirrored / then the prefix is exchanged where it stands in front
    with PrefixMirror(source, destination, "a/", "z/") as mirror:
        mirror.wait_copied(30)
        assert copied(destination) == {"z/1": b"a/1", "z/a/2": b"a/a/2", "z/other": b"kept", "y": b"not ours"}
        assert mirror.status().extra == 1
        # and each change arrives, with the revision that the record names
        source.new_broker().new_txn().put("a/1", b"new").put("a/4", b"").commit()
        done = source.new_broker().delete("a/a/2")
        wait_until(lambda: mirror.status().revision >= done.revision, "followed")
        assert copied(destination, "z/") == {"1": b"new", "4": b"", "a/2": b"a/a/2", "other": b"kept"}
        synced(mirror)
        status = mirror.status()
        assert (status.lag_revisions, status.lag_seconds, status.extra) == (0, 0.0, 2)
        assert status.in_sync_since is not None
        assert (status.held, status.fenced, status.destination) == ((), True, destination.name)
    assert mirror.status().state is MirrorState.CLOSED
