"""The pairs of an earlier revision: those of now, with what the log says of each key that was changed since."""

from __future__ import annotations

from collections.abc import Iterator

from datasync.errors import StoreConnectionError
from datasync.keyval.driver import Scan
from datasync.keyval.embedded import check_position, forgotten
from datasync.keyval.redis.client import RedisClient
from datasync.keyval.redis.log_entry import LogEntry, read_entries
from datasync.keyval.redis.scan import ENTRIES, RedisScan
from datasync.keyval.types import KeyValue


class PartialScan(Scan):
    """The first *limit* pairs (0: all) with a key above *after*, at *revision*."""

    def __init__(self, revision: int, pairs: list[KeyValue], after: str, limit: int) -> None:
        self.revision = revision
        self._pairs = [pair for pair in pairs if pair.key > after or not after][: limit or None]

    def __iter__(self) -> Iterator[KeyValue]:
        return iter(self._pairs)


def read_past(client: RedisClient, prefix: str, revision: int, *, keys_only: bool) -> list[KeyValue]:
    """Return the pairs under *prefix* as they were at *revision*, in key order.

    The whole log is read.

    Raises:
      CompactedError: A key was changed since, and the log no longer has what it was before.
      RewoundError: The store has not reached *revision*.
    """
    scan = RedisScan(client, prefix, keys_only=keys_only)
    entries = list(_entries(client, scan.revision))
    oldest = entries[0].revision if entries else scan.revision + 1
    check_position(client.name, revision, oldest, scan.revision)
    start, decode = client.keys.prefix(prefix), client.keys.decode
    before: dict[str, KeyValue | None] = {}
    changed: set[str] = set()
    for entry in entries:
        for raw, value in entry.ops:
            if not raw.startswith(start):
                continue
            key = decode(raw)
            if entry.revision > revision:
                changed.add(key)
            else:
                kept = b"" if keys_only else value
                before[key] = None if value is None else KeyValue(key, kept or b"", entry.revision)
    pairs = [pair for pair in scan if pair.key not in changed]
    for key in sorted(changed):
        if key not in before and oldest > 1:
            raise forgotten(client.name, key, revision)
        pair = before.get(key)
        if pair is not None:
            pairs.append(pair)
    return sorted(pairs, key=lambda pair: client.keys.encode(pair.key))


def _entries(client: RedisClient, last: int) -> Iterator[LogEntry]:
    after, first = "-", True
    what = "reading the history"
    while True:
        reply = client.command("XRANGE", client.keys.log, after, f"{last}-0", "COUNT", ENTRIES, what=what)
        entries = read_entries(reply, client.name)
        if not entries:
            return
        if not first and entries[0].revision != int(after[1:-2]) + 1:
            raise StoreConnectionError(f"{client.name}: {what}: it is trimmed faster than it is read")
        yield from entries
        after, first = f"({entries[-1].revision}-0", False
