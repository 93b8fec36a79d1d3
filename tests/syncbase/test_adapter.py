"""A watcher and a writer in one object (D23)."""

from __future__ import annotations

from collections.abc import Iterator
from queue import Queue
from typing import Any

import pytest
from google.protobuf.message import Message

from datasync.api import KeyProtoValDeleter, KeyValProtoWatcher
from datasync.errors import UnsupportedError
from datasync.options import DelOption, PutOption, with_prefix, with_ttl
from datasync.syncbase.adapter import Adapter
from datasync.syncbase.registry import Registry
from tests.conftest import take
from tests.support.registries import changes, text, told


class Publisher:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def put(self, key: str, data: Message, *opts: PutOption) -> None:
        self.calls.append((key, data, *opts))

    def delete(self, key: str, *opts: DelOption) -> bool:
        self.calls.append((key, *opts))
        return True


class PutOnly:
    def put(self, key: str, data: Message, *opts: PutOption) -> None: ...


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry() as made:
        yield made


def test_d23_an_adapter_is_a_watcher_and_a_writer_with_options(registry: Registry) -> None:
    # given an adapter of both
    publisher = Publisher()
    adapter = Adapter(registry, publisher)
    assert isinstance(adapter, KeyValProtoWatcher)
    assert isinstance(adapter, KeyProtoValDeleter)
    # when it is used
    queue: Queue[Any] = Queue()
    with adapter.watch("agent", queue, None, "a/"):
        adapter.put("k", text("v"), with_ttl(3))
        assert adapter.delete("k", with_prefix()) is True
        future = registry.submit_changes(changes({"a/1": "x"}))
        event = take(queue)
        event.done()
        future.result()
    # then each half did its part, options included
    assert publisher.calls == [("k", text("v"), with_ttl(3)), ("k", with_prefix())]
    assert told(event) == [("a/1", "x", None)]


def test_what_is_missing_is_refused_by_name() -> None:
    empty = Adapter()
    with pytest.raises(UnsupportedError, match="'agent'"):
        empty.watch("agent", Queue(), None, "a/")
    with pytest.raises(UnsupportedError, match="'k'"):
        empty.put("k", text("v"))
    with pytest.raises(UnsupportedError, match="'k'"):
        empty.delete("k")
    with pytest.raises(UnsupportedError, match="'k'"):
        Adapter(publisher=PutOnly()).delete("k")
