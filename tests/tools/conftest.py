"""Two stores for mirrors, and what the tests ask of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from datasync.keyval.api import Store
from datasync.keyval.urls import connect
from datasync.tools.mirror import MirrorState, PrefixMirror
from datasync.tools.mirror.record import RECORDS, MirrorRecord, record_key
from tests.conftest import wait_until
from tests.support.servers import etcd35  # noqa: F401 - a fixture
from tests.support.stores import state


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[tuple[Store, Store]]:
    with connect(f"sqlite://{tmp_path}/a.db") as source, connect(f"sqlite://{tmp_path}/b.db") as destination:
        yield source, destination


def copied(store: Store, prefix: str = "") -> dict[str, bytes]:
    """What is in *store* under *prefix*, without the prefix and the records."""
    return {key[len(prefix) :]: value for key, value in state(store, prefix).items() if not key.startswith(RECORDS)}


def record(store: Store, prefix: str) -> MirrorRecord:
    """The record of the mirror to *prefix*."""
    pair = store.read(record_key(prefix))
    found = None if pair is None else MirrorRecord.decode(pair.value)
    assert found is not None, "there is a record"
    return found


def synced(mirror: PrefixMirror) -> None:
    wait_until(lambda: mirror.status().state is MirrorState.SYNCED, "in sync")


def equal(source: Store, destination: Store, source_prefix: str, prefix: str) -> None:
    wait_until(lambda: copied(destination, prefix) == copied(source, source_prefix), "both are equal")
