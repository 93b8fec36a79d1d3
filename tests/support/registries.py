"""What the tests of registries share: short ways to say a change, and to read an event."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf.wrappers_pb2 import StringValue

from datasync.commits import Batch, Commit
from datasync.events import ChangeEvent, ChangeValue, MessageT, Op, ResyncEvent, ResyncReason
from datasync.syncbase.change import Change
from datasync.syncbase.registry import Registry
from tests.conftest import CANARY

#: Key to its new value, None for a delete.
Texts = Mapping[str, "str | None"]


def text(value: str) -> StringValue:
    """A message with *value*, and with the canary in it: wherever that is told, the test fails."""
    return StringValue(value=CANARY + value)


def plain(message: StringValue) -> str:
    """What ``text`` was called with."""
    return message.value.removeprefix(CANARY)


def changes(values: Texts) -> dict[str, ChangeValue]:
    """A transaction for ``submit_changes``."""
    return {
        key: Change(key, op=Op.DELETE) if value is None else Change(key, text(value)) for key, value in values.items()
    }


def as_json(value: str | None) -> bytes | None:
    """*value* as a store holds it."""
    return None if value is None else f'"{CANARY}{value}"'.encode()


def snapshot(registry: Registry, revision: int, values: Mapping[str, str], reason: str = "initial") -> None:
    """Feed the full state as a reader does, every key at *revision*."""
    entries = {key: (revision, f'"{CANARY}{value}"'.encode()) for key, value in values.items()}
    registry.feed_snapshot(revision, entries, ResyncReason(reason))


def commits(registry: Registry, *transactions: tuple[int, Texts]) -> None:
    """Feed transactions as a reader does, in one batch."""
    batch = [Commit(revision, [(key, as_json(value)) for key, value in ops.items()]) for revision, ops in transactions]
    registry.feed_changes(Batch(transactions[-1][0], batch))


def told(event: ChangeEvent) -> list[tuple[str, str | None, str | None]]:
    """(key, value, previous value) of each change; None where there is none."""
    found = []
    for change in event.get_changes():
        value = plain(change.get_value(StringValue())) if change.get_change_type() is Op.PUT else None
        buffer = text("stale")
        found.append((change.get_key(), value, plain(buffer) if change.get_prev_value(buffer) else None))
    return found


def values(event: ResyncEvent) -> dict[str, dict[str, str]]:
    """Prefix to its keys with their values."""
    return {
        prefix: {pair.get_key(): plain(pair.get_value(StringValue())) for pair in pairs}
        for prefix, pairs in event.get_values().items()
    }


def state(event: ResyncEvent) -> dict[str, str]:
    """All keys with their values, whatever the prefix; fails when a key stands twice (C5)."""
    found: dict[str, str] = {}
    for pairs in values(event).values():
        assert found.keys().isdisjoint(pairs), "a key stands under two prefixes"
        found |= pairs
    return found


def removed(event: ResyncEvent) -> dict[str, str]:
    """The keys that are gone, with their last known values."""
    return {pair.get_key(): plain(pair.get_value(StringValue())) for pair in event.get_removed()}


def is_resync(event: Any) -> bool:
    return isinstance(event, ResyncEvent)


def stored(registry: Registry, prefix: str = "") -> dict[str, str]:
    """The cache of *registry*."""
    return {pair.key: plain(pair.get_value(StringValue())) for pair in registry.items(prefix)}


class OpaqueChange:
    """A change of somebody's own making, which reads itself and has no bytes."""

    def __init__(self, key: str) -> None:
        self._key = key

    def get_key(self) -> str:
        return self._key

    def get_revision(self) -> int:
        return 0

    def get_change_type(self) -> Op:
        return Op.PUT

    def get_value(self, message: MessageT) -> MessageT:
        return message
