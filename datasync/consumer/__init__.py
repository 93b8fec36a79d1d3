"""Consumers: the code that every user of a queue would write, written once."""

from datasync.consumer.consumer import Consumer
from datasync.consumer.reconciler.group import Reconcilers
from datasync.consumer.reconciler.reconciler import Reconciler
from datasync.consumer.reconciler.retry import Retry
from datasync.consumer.reconciler.status import KeyProblem, Leader, ReconcilerStatus
from datasync.consumer.view.condition import ViewState, ViewStatus
from datasync.consumer.view.frozen import FrozenDict, FrozenList, freeze, thaw
from datasync.consumer.view.notices import ValueChange
from datasync.consumer.view.opened import open_settings, open_view
from datasync.consumer.view.settings import Settings
from datasync.consumer.view.view import View

__all__ = [
    # Whole events
    "Consumer",
    # One call per real difference
    "Reconciler",
    "Reconcilers",
    "Retry",
    "ReconcilerStatus",
    "KeyProblem",
    "Leader",
    # A live mapping
    "View",
    "ViewState",
    "ViewStatus",
    "ValueChange",
    # Opened at first use in each process
    "open_view",
    "open_settings",
    "Settings",
    # Values
    "FrozenDict",
    "FrozenList",
    "freeze",
    "thaw",
]
