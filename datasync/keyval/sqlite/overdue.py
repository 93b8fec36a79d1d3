"""The decision which leases are over: those of clients that are gone, and of nobody who only had to wait."""

from __future__ import annotations

import sqlite3
import time

from datasync.runtime import boot_clock

#: Seconds that the owner of an overdue lease has to renew it, while the file is free, before the lease is over.
GRACE = 0.5
#: Seconds between two looks at leases that are in doubt.
PAUSE = GRACE / 2
#: Seconds after which a call no longer waits for the decision: the keys count as there.
PATIENCE = 4 * GRACE


class OverdueLeases:
    """The overdue leases of other clients, as one store object sees them.

    A lease is overdue when its deadline has passed. Its owner need not be gone: another process was in a transaction
    for longer than the TTL, the machine was suspended, or both processes were stopped together. So an overdue lease
    is in doubt at first. It is over when it was in doubt for ``GRACE`` seconds in which its owner could renew it.

    Threads: callers hold the store's writing connection and are inside a transaction of it; ``in_doubt``: any.
    Source: contract C17, C23.
    """

    def __init__(self) -> None:
        # Id to (deadline, monotonic time since which it is in doubt): a suspended machine gives nobody a chance.
        self._doubts: dict[int, tuple[float, float]] = {}
        #: True if some leases were overdue and not yet over in the last transaction.
        self.in_doubt = False

    def over(self, connection: sqlite3.Connection, *, own: int, waited: float) -> list[int]:
        """Return the leases that are over now, without the lease *own*.

        Args:
          waited: Seconds that this transaction waited for the lock. The owners waited as well, if it was long.
        """
        now = time.monotonic()
        overdue = connection.execute(
            "SELECT id, deadline FROM lease WHERE deadline <= ? AND id <> ?", (boot_clock.now(), own)
        ).fetchall()
        doubts = {}
        for lease, deadline in overdue:
            known, since = self._doubts.get(lease, (None, now))
            doubts[lease] = (deadline, since if known == deadline and waited < PAUSE else now)
        over = [lease for lease, (_, since) in doubts.items() if since + GRACE <= now]
        self._doubts = doubts
        self.in_doubt = len(over) < len(doubts)
        return over
