"""The transactions that wait for a subscriber.

Source: contract C4, C8.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from datasync.syncbase.change import ChangeResp
from datasync.syncbase.core import PendingTransaction
from datasync.syncbase.futures import PropagationFuture

#: Changes in one event, unless one transaction is larger.
MAX_BATCH = 1000
#: Pending changes of one subscription; more turn into a RESYNC.
MAX_PENDING = 10_000


class Backlog(deque[PendingTransaction]):
    """The pending transactions of one subscription, oldest first. Threads: the registry's lock.

    A deque, so that the data path appends, takes and tests for emptiness without a call of Python code.
    """

    __slots__ = ("changes",)

    def __init__(self) -> None:
        super().__init__()
        #: Number of changes in all transactions; code that appends or takes one updates it.
        self.changes = 0

    def take_following(self, first: PendingTransaction) -> list[PendingTransaction]:
        """Take the transactions that go into one event with *first*, which has no waiter.

        Transactions of a store are merged as long as no key comes twice and the event stays below ``MAX_BATCH``. A
        caller's transaction goes alone, so that each caller gets its own acknowledgement.
        """
        merged: list[PendingTransaction] = []
        size = len(first.changes)
        keys = {change.key for change in first.changes}
        while self and size + len(self[0].changes) <= MAX_BATCH:
            following = self[0]
            names = [change.key for change in following.changes]
            if following.waiter is not None or not keys.isdisjoint(names):
                break
            keys.update(names)
            size += len(names)
            self.changes -= len(names)
            merged.append(self.popleft())
        return merged

    def put_back(self, transactions: Sequence[PendingTransaction]) -> None:
        """Put *transactions*, oldest first, back in front of the others."""
        self.extendleft(reversed(transactions))
        self.changes += sum(len(transaction.changes) for transaction in transactions)

    def keep(self, wanted: Callable[[ChangeResp], bool]) -> list[PropagationFuture]:
        """Drop every change that is not *wanted*; return the waiters of transactions of which nothing is left."""
        finished: list[PropagationFuture] = []
        waiting = list(self)
        self.drain()
        for transaction in waiting:
            kept = [change for change in transaction.changes if wanted(change)]
            if kept:
                # A new object: other subscriptions may share the old one.
                self.append(PendingTransaction(kept, transaction.waiter, transaction.context))
                self.changes += len(kept)
            elif transaction.waiter is not None:
                finished.append(transaction.waiter)
        return finished

    def drain(self) -> list[PropagationFuture]:
        """Drop every transaction; return the callers that wait for one."""
        waiters = [transaction.waiter for transaction in self if transaction.waiter is not None]
        self.clear()
        self.changes = 0
        return waiters
