"""The store that applications use: a driver with brokers and watchers.

Source: cn-infra ``db/keyval``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from datasync.errors import UnsupportedError
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

    # The verbs that some stores have: a program finds out by an error of this library, not by an AttributeError.

    def campaign(
        self,
        prefix: str,
        value: bytes = b"",
        timeout: float | None = None,
        on_lost: Callable[[], object] | None = None,
    ) -> Any:
        """Become a candidate for leader under *prefix*; raises ``UnsupportedError`` in a store without elections."""
        raise UnsupportedError(f"{self.name} has no elections; etcd:// has")

    def committed(self, token: str) -> bool:
        """Tell whether the commit of *token*, that of an ``UnknownOutcome``, was applied. The answer is final.

        Raises:
          CompactedError: The commit, if it was applied, is no longer in the history of the store.
          InvalidArgumentError: *token* is not a token.
          UnsupportedError: The store keeps no tokens.
        """
        raise UnsupportedError(f"{self.name} keeps no tokens: read the key to see whether the write was applied")

    def compact(self, revision: int | None = None) -> Any:
        """Forget the history up to *revision*; raises ``UnsupportedError`` in a store that cannot."""
        raise UnsupportedError(f"{self.name} cannot compact its history")
