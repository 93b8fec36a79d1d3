"""Sources that views are tested over: each is a watcher, and writes the bytes of a key."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from datasync import KVProtoWatchers
from datasync.events import Op
from datasync.keyval import connect
from datasync.kvdbsync import Plugin
from datasync.syncbase import ChangeBytes, Registry
from tests.conftest import wait_until


class Source(NamedTuple):
    """A *watcher* with *write*, which deletes for None, and takes several keys as one transaction if it can."""

    watcher: Any
    write: Callable[[dict[str, bytes | None]], None]


def plugin_source(stack: ExitStack, url: str) -> Source:
    store = stack.enter_context(connect(url))
    plugin = stack.enter_context(Plugin(store, "app/"))
    broker = store.new_broker("app/")

    def write(values: dict[str, bytes | None]) -> None:
        txn = broker.new_txn()
        for key, data in values.items():
            if data is None:
                txn.delete(key)
            else:
                txn.put(key, data)
        revision = txn.commit().revision
        wait_until(lambda: plugin.registry.revision >= revision, "the mirror has the write")

    return Source(plugin, write)


def registry_source(stack: ExitStack, name: str) -> Source:
    registry = stack.enter_context(Registry(name))

    def write(values: dict[str, bytes | None]) -> None:
        changes = {
            key: ChangeBytes(key, data, op=Op.DELETE if data is None else Op.PUT) for key, data in values.items()
        }
        registry.submit_changes(changes)

    return Source(registry, write)


def make(stack: ExitStack, kind: str, folder: Path) -> Source:
    if kind == "memory":
        return plugin_source(stack, "memory://")
    if kind == "sqlite":
        return plugin_source(stack, f"sqlite:///{folder}/view.db")
    if kind == "registry":
        return registry_source(stack, "local")
    first = plugin_source(stack, "memory://")
    second = registry_source(stack, "local")
    return Source(KVProtoWatchers(second.watcher, first.watcher), first.write)
