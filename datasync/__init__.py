"""datasync keeps a threaded program in step with a key-value store.

What is exported here is floor 0, the words in which every transport speaks, and the aggregates over many transports.
The rest is imported from its package: ``datasync.keyval``, ``datasync.kvdbsync``, ``datasync.syncbase``, ...
"""

import logging

from datasync.aggregator import AggregatedRegistration, KVProtoWatchers, KVProtoWriters
from datasync.api import (
    DEFAULT_NOTIF_TIMEOUT,
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
    PermissionDenied,
    PropagationError,
    PublishError,
    StoreConnectionError,
    StoreError,
    SubscriptionError,
    UnknownOutcome,
    UnsupportedError,
)
from datasync.events import (
    CallbackResult,
    ChangeEvent,
    ChangeValue,
    KeyVal,
    KeyValIterator,
    LazyValue,
    Op,
    ProtoWatchResp,
    ResyncEvent,
    ResyncReason,
    WithChangeType,
    WithKey,
    WithPrevValue,
    WithRevision,
)
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

__all__ = [
    # What a subscriber receives
    "ChangeEvent",
    "ResyncEvent",
    "ResyncReason",
    "ProtoWatchResp",
    "ChangeValue",
    "KeyVal",
    "KeyValIterator",
    "Op",
    # The parts these are made of
    "CallbackResult",
    "LazyValue",
    "WithChangeType",
    "WithKey",
    "WithPrevValue",
    "WithRevision",
    # The two sides of a transport
    "DEFAULT_NOTIF_TIMEOUT",
    "KeyValProtoWatcher",
    "KeyProtoValWriter",
    "KeyProtoValDeleter",
    "WatchRegistration",
    # Many transports seen as one
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
