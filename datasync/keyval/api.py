"""The store that applications use: a driver with brokers and watchers.

Source: cn-infra ``db/keyval``.
"""

from __future__ import annotations

from datasync.keyval.broker import BytesBroker
from datasync.keyval.driver import StoreDriver
from datasync.keyval.types import ROOT
from datasync.keyval.watcher import Watcher


class Store(StoreDriver):
    """A key-value store: the base class of every driver and the type that ``connect`` returns. Threads: any."""

    def new_broker(self, prefix: str = ROOT) -> BytesBroker:
        """Return a broker for the keys that start with *prefix*."""
        return BytesBroker(self, prefix)

    def new_watcher(self, prefix: str = ROOT) -> Watcher:
        """Return a watcher for the keys that start with *prefix*."""
        return Watcher(self, prefix)
