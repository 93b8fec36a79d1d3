"""Keep a threaded program in sync with a key-value store.

This package exports the interfaces that all transports share, the aggregates over several transports, and the names
that a first program needs: ``connect``, ``Plugin``, ``codecs``, and the consumers. Everything else is imported from its
own package: ``datasync.keyval``, ``datasync.kvdbsync``, ``datasync.consumer``, ``datasync.syncbase``,
``datasync.resync``, ``datasync.grpcsync`` and ``datasync.restsync``.
"""

import logging
from typing import TYPE_CHECKING

from datasync.api import (
    DEFAULT_NOTIF_TIMEOUT,
    WAIT_TIMEOUT,
    KeyProtoValDeleter,
    KeyProtoValWriter,
    KeyValProtoWatcher,
    WatchRegistration,
)
from datasync.context import current_source, with_source
from datasync.errors import (
    AggregateError,
    ClosedError,
    CompactedError,
    ConflictError,
    DatasyncError,
    DecodeError,
    DeliveryTimeout,
    DoneTimeout,
    ForkedError,
    InvalidArgumentError,
    MessagingError,
    MissingExtraError,
    NotReadyError,
    Permanent,
    PermissionDenied,
    PropagationError,
    PublishError,
    Rejected,
    RetryAfter,
    StoreConnectionError,
    StoreError,
    SubscriptionError,
    UnknownOutcome,
    UnsupportedError,
)
from datasync.events import (
    CallbackResult,
    ChangedPair,
    ChangeEvent,
    ChangeValue,
    KeyVal,
    KeyValIterator,
    LazyValue,
    Op,
    Pair,
    ProtoWatchResp,
    ResyncEvent,
    ResyncReason,
    WithChangeType,
    WithKey,
    WithPrevValue,
    WithRevision,
)
from datasync.runtime.lazy import load_lazily

if TYPE_CHECKING:
    from datasync import codecs
    from datasync.aggregator import AggregatedRegistration, KVProtoWatchers, KVProtoWriters
    from datasync.commits import WriteResult
    from datasync.consumer.consumer import Consumer
    from datasync.consumer.reconciler.reconciler import Reconciler
    from datasync.consumer.view.opened import open_settings, open_view
    from datasync.consumer.view.view import View
    from datasync.keyval.urls import connect
    from datasync.kvdbsync.plugin import Plugin
    from datasync.options import (
        DelOption,
        PutOption,
        WithClientLifetimeTTLOpt,
        WithPrefixOpt,
        WithTTLOpt,
        with_client_lifetime_ttl,
        with_prefix,
        with_ttl,
    )
else:  # loaded on first use, because ``import datasync`` must stay light
    __getattr__, __dir__ = load_lazily(
        __name__,
        {
            "codecs": "",
            "connect": "datasync.keyval.urls",
            "Plugin": "datasync.kvdbsync.plugin",
            "Consumer": "datasync.consumer.consumer",
            "Reconciler": "datasync.consumer.reconciler.reconciler",
            "View": "datasync.consumer.view.view",
            "open_view": "datasync.consumer.view.opened",
            "open_settings": "datasync.consumer.view.opened",
            "AggregatedRegistration": "datasync.aggregator",
            "KVProtoWatchers": "datasync.aggregator",
            "KVProtoWriters": "datasync.aggregator",
            "WriteResult": "datasync.commits",
            "DelOption": "datasync.options",
            "PutOption": "datasync.options",
            "WithClientLifetimeTTLOpt": "datasync.options",
            "WithPrefixOpt": "datasync.options",
            "WithTTLOpt": "datasync.options",
            "with_client_lifetime_ttl": "datasync.options",
            "with_prefix": "datasync.options",
            "with_ttl": "datasync.options",
        },
    )

__all__ = [
    # A first program
    "connect",
    "Plugin",
    "codecs",
    # Live values
    "View",
    "open_view",
    "open_settings",
    "Reconciler",
    "Consumer",
    # What a subscriber receives
    "ChangeEvent",
    "ResyncEvent",
    "ResyncReason",
    "ProtoWatchResp",
    "ChangeValue",
    "KeyVal",
    "KeyValIterator",
    "Pair",
    "ChangedPair",
    "Op",
    # The parts of an event
    "CallbackResult",
    "LazyValue",
    "WithChangeType",
    "WithKey",
    "WithPrevValue",
    "WithRevision",
    # The two sides of a transport
    "DEFAULT_NOTIF_TIMEOUT",
    "WAIT_TIMEOUT",
    "WriteResult",
    "KeyValProtoWatcher",
    "KeyProtoValWriter",
    "KeyProtoValDeleter",
    "WatchRegistration",
    # Several transports as one
    "KVProtoWatchers",
    "KVProtoWriters",
    "AggregatedRegistration",
    # Options of put and delete
    "PutOption",
    "DelOption",
    "WithTTLOpt",
    "WithClientLifetimeTTLOpt",
    "WithPrefixOpt",
    "with_ttl",
    "with_client_lifetime_ttl",
    "with_prefix",
    # Context of an event
    "current_source",
    "with_source",
    # Answers of a subscriber
    "Rejected",
    "RetryAfter",
    "Permanent",
    # Errors
    "DatasyncError",
    "NotReadyError",
    "ClosedError",
    "ForkedError",
    "SubscriptionError",
    "InvalidArgumentError",
    "ConflictError",
    "MissingExtraError",
    "DeliveryTimeout",
    "DoneTimeout",
    "PropagationError",
    "AggregateError",
    "DecodeError",
    "StoreError",
    "StoreConnectionError",
    "PermissionDenied",
    "CompactedError",
    "UnsupportedError",
    "UnknownOutcome",
    "MessagingError",
    "PublishError",
]

logging.getLogger(__name__).addHandler(logging.NullHandler())
