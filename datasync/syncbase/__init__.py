"""The core of every transport: one registry per source, one stream per subscriber."""

from datasync.runtime.timeouts import ABANDON_TIMEOUT, Timeouts
from datasync.syncbase.adapter import Adapter
from datasync.syncbase.change import Change, ChangeBytes, ChangeResp, KeyVal, KeyValBytes
from datasync.syncbase.core import MAX_BATCH, MAX_PENDING
from datasync.syncbase.events import KVIterator
from datasync.syncbase.futures import DoneCallback, DoneFuture, Outcome, PropagationFuture, aggregate_done
from datasync.syncbase.registration import Registration
from datasync.syncbase.registry import RESYNC_DONE_TIMEOUT, Registry
from datasync.syncbase.state import PrevRevisions
from datasync.syncbase.status import OwedStatus, SubscriptionState, SubscriptionStatus, TransportState, TransportStatus

__all__ = [
    # Changes and values
    "Change",
    "ChangeBytes",
    "ChangeResp",
    "KVIterator",
    "KeyVal",
    "KeyValBytes",
    # The hub
    "ABANDON_TIMEOUT",
    "Adapter",
    "MAX_BATCH",
    "MAX_PENDING",
    "OwedStatus",
    "PrevRevisions",
    "RESYNC_DONE_TIMEOUT",
    "Registration",
    "Registry",
    "SubscriptionState",
    "SubscriptionStatus",
    "Timeouts",
    "TransportState",
    "TransportStatus",
    # Acknowledgements
    "DoneCallback",
    "DoneFuture",
    "Outcome",
    "PropagationFuture",
    "aggregate_done",
]
