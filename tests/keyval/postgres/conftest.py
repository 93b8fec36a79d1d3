"""Stores on a real server: a shared one for tests that harm nobody, one of its own for the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from uuid import uuid4

import pytest

from datasync.keyval import Store, connect
from tests.support.postgres import PostgresServer, find_postgres, postgres  # noqa: F401 - a fixture

Open = Callable[..., Store]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "keyval/postgres" in str(item.path):
            item.add_marker(pytest.mark.postgres)


@pytest.fixture
def server(postgres: PostgresServer) -> PostgresServer:  # noqa: F811
    return postgres


@pytest.fixture
def own() -> Iterator[PostgresServer]:
    """A server that the test may harm."""
    with PostgresServer(find_postgres()) as own:
        yield own


@pytest.fixture
def schema() -> str:
    return f"s{uuid4().hex}"


@pytest.fixture
def opened() -> Iterator[Open]:
    """Opens stores and closes them at the end."""
    stores: list[Store] = []

    def open_store(url: str, **options: object) -> Store:
        stores.append(connect(url, **options))
        return stores[-1]

    yield open_store
    for store in reversed(stores):
        store.close()
