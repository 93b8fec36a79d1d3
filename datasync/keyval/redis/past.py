"""The pairs of an earlier revision: those of now, with what the log says of each key that was changed since."""

from __future__ import annotations

from collections.abc import Iterator

from datasync.errors import StoreConnectionError
from datasync.keyval.driver import Scan
from datasync.keyval.embedded import check_position
from datasync.keyval.history import pairs_at
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


def read_past(
    client: RedisClient,
    prefix: str,
    revision: int,
    *,
    after: str = "",
    limit: int = 0,
    keys_only: bool = False,
    exact: bool = False,
) -> list[KeyValue]:
    """Return the first *limit* pairs (0: all) above *after* under *prefix* at *revision*, in key order.

    The whole log is read.

    Args:
      exact: *prefix* is the only key.

    Raises:
      CompactedError: A key was changed since, and the log no longer has what it was before.
      RewoundError: The store has not reached *revision*.
    """
    scan = RedisScan(client, prefix, keys_only=keys_only, exact=exact)
    entries = list(_entries(client, scan.revision))
    oldest = entries[0].revision if entries else scan.revision + 1
    check_position(client.name, revision, oldest, scan.revision)
    decode = client.keys.decode
    changes = (
        (decode(raw), b"" if keys_only and value is not None else value, entry.revision)
        for entry in entries
        for raw, value in entry.ops
        if scan.covers(raw)
    )
    return pairs_at(
        revision,
        [pair for pair in scan if pair.key > after],
        [change for change in changes if change[0] > after],
        complete=oldest == 1,
        name=client.name,
        limit=limit,
    )


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
