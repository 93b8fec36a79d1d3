"""The store that applications use: a driver with brokers and watchers.

Source: cn-infra ``db/keyval``.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

from datasync.checks import check_key
from datasync.errors import InvalidArgumentError, UnsupportedError
from datasync.keyval.broker import BytesBroker
from datasync.keyval.driver import StoreDriver
from datasync.keyval.locks.leadership import Leadership, campaign
from datasync.keyval.locks.lock import Lock
from datasync.keyval.types import ROOT, Capability
from datasync.keyval.watcher import Watcher

# Not socket.gethostname(): that module takes a tenth of a program's start-up time.
_HOST = os.uname().nodename if hasattr(os, "uname") else os.environ.get("COMPUTERNAME", "")


class Store(StoreDriver):
    """A key-value store: the base class of every driver and the type that ``connect`` returns. Threads: any."""

    def new_broker(self, prefix: str = ROOT) -> BytesBroker:
        """Return a broker for the keys that start with *prefix*."""
        return BytesBroker(self, prefix)

    def new_watcher(self, prefix: str = ROOT) -> Watcher:
        """Return a watcher for the keys that start with *prefix*."""
        return Watcher(self, prefix)

    def lock(
        self,
        name: str,
        ttl: float | None = None,
        *,
        n: int = 1,
        identifier: str | None = None,
        on_lost: Callable[[], object] | None = None,
    ) -> Lock:
        """Return a lock that clients of this store share by its *name*; nothing is read or written yet.

        Args:
          name: In front of the keys of the contenders, followed by a slash: an absolute key, whatever the prefix of a
            broker. Choose one under which there is no data.
          ttl: Seconds after which a holder that died, or cannot reach the store, no longer holds it; by default
            ``session_ttl`` of the store. The holder's own clock ends it a tenth earlier.
          n: The number of clients that may hold it at once: a semaphore. All its clients must give the same number.
          identifier: Shown by ``contenders()``; by default host name and process id.
          on_lost: Called by a thread of the lock when it was lost; must return soon.

        Raises:
          InvalidArgumentError: An invalid name, *ttl* or *n*.
          UnsupportedError: The store has no leases or conditions; its ``capabilities`` tell.

        .. versionadded:: 1.0
        """
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise InvalidArgumentError(f"the n of the lock {name!r} must be an integer, at least 1, not {n!r}")
        if identifier is None:
            identifier = f"{_HOST}:{os.getpid()}"
        if not isinstance(identifier, str):
            raise InvalidArgumentError(f"the identifier of a lock is a string, not {type(identifier).__name__}")
        return self._new_lock(name, identifier.encode("utf-8", "surrogateescape"), ttl, n, on_lost)

    def campaign(
        self,
        prefix: str,
        value: bytes = b"",
        timeout: float | None = None,
        on_lost: Callable[[], object] | None = None,
        *,
        ttl: float | None = None,
    ) -> Leadership:
        """Become a candidate for leader under *prefix* with *value*, and return when elected.

        A thread of the leadership calls *on_lost* when it is lost. *ttl* is as for :meth:`lock`.

        Raises:
          NotReadyError: Not elected within *timeout* seconds.
          InvalidArgumentError: An invalid argument.
          UnsupportedError: The store has no elections; its ``capabilities`` tell.
        """
        if not isinstance(value, bytes):
            raise InvalidArgumentError(f"the value of a candidate must be bytes, not {type(value).__name__}")
        return campaign(self._new_lock(prefix, value, ttl, 1, on_lost), timeout)

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

    def _new_lock(
        self, name: str, value: bytes, ttl: float | None, size: int, on_lost: Callable[[], object] | None
    ) -> Lock:
        check_key(name, "the name of a lock or election")
        self.new_broker().absolute(name)
        seconds = self.session_ttl if ttl is None else ttl
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds < math.inf:
            raise InvalidArgumentError(f"the ttl of the lock {name!r} must be a number of seconds, not {ttl!r}")
        missing = {Capability.LEASE, Capability.CAS, Capability.REVISION} - self.capabilities
        if not missing and type(self).grant is StoreDriver.grant:
            raise UnsupportedError(f"{self.name} has no locks or elections yet: its driver does not grant leases")
        if missing:
            listed = ", ".join(sorted(one.value for one in missing))
            raise UnsupportedError(f"{self.name} has no locks or elections: it lacks {listed}")
        return Lock(self, name, value, size=size, ttl=float(seconds), on_lost=on_lost)
