"""Consumers: the code that every user of a queue would write, written once."""

from typing import TYPE_CHECKING

from datasync.runtime.lazy import load_lazily

if TYPE_CHECKING:
    from datasync.consumer.consumer import Consumer
    from datasync.consumer.reconciler.group import Reconcilers
    from datasync.consumer.reconciler.leading import Leader
    from datasync.consumer.reconciler.reconciler import Reconciler
    from datasync.consumer.reconciler.retry import Retry
    from datasync.consumer.reconciler.status import KeyProblem, ReconcilerStatus
    from datasync.consumer.view.condition import ViewState, ViewStatus
    from datasync.consumer.view.frozen import FrozenDict, FrozenList, freeze, thaw
    from datasync.consumer.view.notices import ValueChange
    from datasync.consumer.view.opened import open_settings, open_view
    from datasync.consumer.view.settings import Settings
    from datasync.consumer.view.view import View
else:  # loaded on first use: a program with a view needs no reconciler
    __getattr__, __dir__ = load_lazily(
        __name__,
        {
            "Consumer": "datasync.consumer.consumer",
            "Reconcilers": "datasync.consumer.reconciler.group",
            "Reconciler": "datasync.consumer.reconciler.reconciler",
            "Retry": "datasync.consumer.reconciler.retry",
            "KeyProblem": "datasync.consumer.reconciler.status",
            "Leader": "datasync.consumer.reconciler.leading",
            "ReconcilerStatus": "datasync.consumer.reconciler.status",
            "ViewState": "datasync.consumer.view.condition",
            "ViewStatus": "datasync.consumer.view.condition",
            "FrozenDict": "datasync.consumer.view.frozen",
            "FrozenList": "datasync.consumer.view.frozen",
            "freeze": "datasync.consumer.view.frozen",
            "thaw": "datasync.consumer.view.frozen",
            "ValueChange": "datasync.consumer.view.notices",
            "open_settings": "datasync.consumer.view.opened",
            "open_view": "datasync.consumer.view.opened",
            "Settings": "datasync.consumer.view.settings",
            "View": "datasync.consumer.view.view",
        },
    )

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
