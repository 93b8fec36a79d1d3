"""A topic of messages as a transport: a writer, and a watcher of a compacted topic.

Source: cn-infra ``datasync/msgsync``, which only wrote.
"""

from datasync.msgsync.publisher import Plugin, PublisherStatus
from datasync.msgsync.topic import TopicStore
from datasync.msgsync.watcher import Watcher

__all__ = [
    # The transport
    "Plugin",
    "PublisherStatus",
    "Watcher",
    # A topic as a store
    "TopicStore",
]
