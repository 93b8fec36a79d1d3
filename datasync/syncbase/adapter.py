"""A watcher and a writer combined in one object.

Source: cn-infra ``datasync/syncbase/transport_adapter.go``, whose ``Put`` takes no options.
"""

from __future__ import annotations

from queue import Queue
from typing import Any

from google.protobuf.message import Message

from datasync.api import KeyProtoValDeleter, KeyProtoValWriter, KeyValProtoWatcher, WatchRegistration
from datasync.commits import WriteResult
from datasync.errors import UnsupportedError
from datasync.options import DelOption, PutOption


class Adapter:
    """A *watcher* with a *publisher*; a call to a missing one raises ``UnsupportedError``. Threads: as both allow."""

    def __init__(self, watcher: KeyValProtoWatcher | None = None, publisher: KeyProtoValWriter | None = None) -> None:
        self.watcher = watcher
        self.publisher = publisher

    def watch(
        self, resync_name: str, change_queue: Queue[Any] | None, resync_queue: Queue[Any] | None, *key_prefixes: str
    ) -> WatchRegistration:
        """Subscribe with the watcher; see :meth:`datasync.api.KeyValProtoWatcher.watch`."""
        if self.watcher is None:
            raise UnsupportedError(f"{resync_name!r} cannot watch: the adapter has no watcher")
        return self.watcher.watch(resync_name, change_queue, resync_queue, *key_prefixes)

    def put(self, key: str, data: Message, *opts: PutOption) -> WriteResult | None:
        """Write with the publisher; see :meth:`datasync.api.KeyProtoValWriter.put`."""
        if self.publisher is None:
            raise UnsupportedError(f"{key!r} cannot be put: the adapter has no publisher")
        return self.publisher.put(key, data, *opts)

    def delete(self, key: str, *opts: DelOption) -> WriteResult | bool:
        """Delete with the publisher; the result is true if the key existed."""
        if not isinstance(self.publisher, KeyProtoValDeleter):
            raise UnsupportedError(f"{key!r} cannot be deleted: the adapter has no publisher that can delete")
        return self.publisher.delete(key, *opts)
