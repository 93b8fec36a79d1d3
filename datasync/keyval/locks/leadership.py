"""Leader election: a lock that its holder keeps, with the leader's value in its key.

Source: cn-infra ``db/keyval/etcd/bytes_broker_impl.go``, ``CampaignInElection``; contract C15, C23.
"""

from __future__ import annotations

import threading

from datasync.errors import NotReadyError
from datasync.keyval.locks.lock import Lock
from datasync.runtime.closing import Closable


def campaign(lock: Lock, timeout: float | None) -> Leadership:
    """Stand in the election of *lock*, and return when elected.

    Raises:
      NotReadyError: Not elected within *timeout* seconds; the candidacy is withdrawn.
    """
    if not lock.acquire(timeout=timeout):
        raise NotReadyError(f"the election under {lock.name!r}: not elected in time")
    return Leadership(lock)


class Leadership(Closable):
    """The leadership under a prefix, until ``resign`` or until it is lost.

    It is lost when its lease is revoked, when its key is deleted or overwritten, or when the store was not reached for
    the lifetime of the lease: by then another candidate may lead. Protected work must check ``is_leader`` or wait for
    ``lost``.

    Threads: any; one thread of its own, which calls *on_lost*.
    """

    def __init__(self, lock: Lock) -> None:
        self._lock = lock
        #: The candidate's key.
        self.key = lock.key
        #: The fencing token: it increases with each leader. See ``Lock.token``.
        self.token = lock.token
        #: As ``token``: the store's revision of the candidacy.
        self.revision = lock.token
        #: Set when the leadership ended other than by ``resign``.
        self.lost: threading.Event = lock.lost

    @property
    def is_leader(self) -> bool:
        """False as soon as the lease may have ended, even if this client has not found out yet.

        If the key is deleted by hand, it becomes false within a third of the lifetime of the lease, and the token of
        the next leader is greater. Also False in a forked child: the parent leads.
        """
        return self._lock.is_acquired

    def resign(self) -> None:
        """Resign, so that the next candidate leads at once. May be called twice.

        If the store cannot be reached, that is logged, and the next candidate leads when the lease has ended.
        """
        self._lock.release()

    def close(self) -> None:
        """Resign; the end of a ``with`` block."""
        self.resign()
