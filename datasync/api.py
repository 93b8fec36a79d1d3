"""The two sides of a transport: watchers that deliver events, and writers that send values.

Source: cn-infra ``datasync/datasync_api.go``; contract C2, C11.
"""

from __future__ import annotations

from queue import Queue
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from google.protobuf.message import Message

if TYPE_CHECKING:
    from datasync.commits import WriteResult
    from datasync.options import DelOption, PutOption

#: Seconds that a caller waits for ``done`` of a change, and that an event waits for room in a subscriber's queue.
DEFAULT_NOTIF_TIMEOUT = 2.0
#: Seconds that a caller waits for its own write to arrive.
WAIT_TIMEOUT = 5.0


@runtime_checkable
class WatchRegistration(Protocol):
    """A running subscription. Threads: any. A context manager that closes it."""

    def register(self, resync_name: str, key_prefix: str) -> None:
        """Add *key_prefix*; a RESYNC that includes it follows.

        Raises:
          SubscriptionError: *resync_name* is not this subscription's, or it already watches *key_prefix*.
        """

    def unregister(self, key_prefix: str) -> None:
        """Remove *key_prefix*; no event with its keys is put afterwards. Without effect for an unknown prefix."""

    def close(self) -> None:
        """End the subscription; no event is put afterwards. May be called twice."""

    def __enter__(self) -> WatchRegistration: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@runtime_checkable
class KeyValProtoWatcher(Protocol):
    """A source whose full state and changes can be subscribed to."""

    def watch(
        self, resync_name: str, change_queue: Queue[Any] | None, resync_queue: Queue[Any] | None, *key_prefixes: str
    ) -> WatchRegistration:
        """Subscribe *resync_name* to every key that starts with one of *key_prefixes*.

        Args:
          resync_name: Name of the subscription, unique in this watcher.
          change_queue: Receives a ``ChangeEvent`` per transaction; None counts every change as done.
          resync_queue: Receives a ``ResyncEvent`` at first and whenever the stream cannot continue; None counts it as
            done. May be the same object as *change_queue*.
          key_prefixes: Plain strings, relative to the transport's own prefix. Without any, every key.

        Raises:
          SubscriptionError: The name is taken, or a prefix is given twice.
          InvalidArgumentError: Both queues are None, or a prefix is not a string.
        """


@runtime_checkable
class KeyProtoValWriter(Protocol):
    """A writer to a store or a peer."""

    def put(self, key: str, data: Message, *opts: PutOption) -> WriteResult | None:
        """Write *data* under *key*; return the result, None from a writer that knows of no revision.

        Raises ``InvalidArgumentError`` for None and for unsupported options.
        """


@runtime_checkable
class KeyProtoValDeleter(KeyProtoValWriter, Protocol):
    """A writer that can also delete."""

    def delete(self, key: str, *opts: DelOption) -> WriteResult | bool:
        """Delete *key*; the result is true if the key existed."""
