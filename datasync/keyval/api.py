"""A key-value store: a driver together with its brokers and watchers.

Source: cn-infra ``db/keyval``; contract section 4.
"""

from __future__ import annotations

from datasync.keyval.broker import BytesBroker
from datasync.keyval.driver import StoreDriver
from datasync.keyval.types import ROOT
from datasync.keyval.watcher import Watcher


class Store(StoreDriver):
    """A key-value store: what every driver inherits and what ``connect`` returns. Threads: any."""

    def new_broker(self, prefix: str = ROOT) -> BytesBroker:
        """A broker for the keys that start with *prefix*."""
        return BytesBroker(self, prefix)

    def new_watcher(self, prefix: str = ROOT) -> Watcher:
        """A watcher for the keys that start with *prefix*."""
        return Watcher(self, prefix)
