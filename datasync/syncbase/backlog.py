"""The pending transactions of a subscription.

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
#: Pending changes of one subscription; beyond this they are replaced by one RESYNC. Also the limit on the callers that
#: wait for one RESYNC.
MAX_PENDING = 10_000


class Backlog(deque[PendingTransaction]):
    """The pending transactions of one subscription, oldest first. Call with the registry's lock held.

    A deque, so that append, popleft and bool() run in C.
    """

    __slots__ = ("change_count",)

    def __init__(self) -> None:
        super().__init__()
        #: Number of changes in all transactions. Kept up to date by the code that appends or takes a transaction.
        self.change_count = 0

    def take_following(self, first: PendingTransaction) -> list[PendingTransaction]:
        """Take the transactions that go into one event with *first*, which has no waiter.

        Transactions without a waiter (from a store) are merged as long as no key comes twice and the event does not
        exceed ``MAX_BATCH``. A caller's transaction goes alone, so that each caller gets its own acknowledgement.
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
            self.change_count -= len(names)
            merged.append(self.popleft())
        return merged

    def put_back(self, transactions: Sequence[PendingTransaction]) -> None:
        """Put *transactions*, oldest first, back in front of the others."""
        self.extendleft(reversed(transactions))
        self.change_count += sum(len(transaction.changes) for transaction in transactions)

    def drop_unwanted(self, wanted: Callable[[ChangeResp], bool]) -> list[PropagationFuture]:
        """Drop every change that is not *wanted*. Return the futures of the dropped transactions."""
        dropped: list[PropagationFuture] = []
        before = list(self)
        self.drop_all()
        for transaction in before:
            kept = [change for change in transaction.changes if wanted(change)]
            if kept:
                # A new object: other subscriptions may share the old one.
                self.append(PendingTransaction(kept, transaction.waiter, transaction.context))
                self.change_count += len(kept)
            elif transaction.waiter is not None:
                dropped.append(transaction.waiter)
        return dropped

    def drop_all(self) -> list[PropagationFuture]:
        """Drop every transaction. Return the futures of the dropped transactions."""
        waiters = [transaction.waiter for transaction in self if transaction.waiter is not None]
        self.clear()
        self.change_count = 0
        return waiters
