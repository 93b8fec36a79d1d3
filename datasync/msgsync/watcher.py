"""A compacted topic as a transport: its messages arrive as events.

Source: contract section 5, "Messages"; C2, C10-C14, C18. The original had no counterpart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, overload

from google.protobuf.message import Message

from datasync.api import WAIT_TIMEOUT
from datasync.checks import check_serializer
from datasync.codecs.api import Codec
from datasync.commits import HasRevision
from datasync.keyval.mirror import StoreMirror
from datasync.keyval.types import ROOT
from datasync.messaging.api import Broker
from datasync.msgsync.topic import TopicStore
from datasync.resync.orchestrator import Plugin as Orchestrator
from datasync.runtime.timeouts import Timeouts
from datasync.serializer import Serializer, SerializerJSON

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    T = TypeVar("T", default=Message)
else:
    from typing import TypeVar

    T = TypeVar("T")


class Watcher(StoreMirror[T]):
    """A mirror of one partition of a compacted topic, which it delivers to subscribers.

    The first event is a RESYNC with the last value of each key, up to the end of the partition. Each message after it
    is a change, and a tombstone a delete. Revisions are offsets + 1. One thread follows the topic, whatever the number
    of subscriptions.

    Args:
      broker: The broker; the watcher does not close it.
      topic: The topic; it must exist.
      prefix: Plain string that keys start with; subscribers receive keys relative to it.
      resync: Orchestrator of the subscriptions; the first RESYNC waits for its first ``do_resync()``.
      serializer: Decodes messages; protojson by default, as Go's plugin writes it.
      partition: The partition to follow; needed for a topic with several, which have no common order.
      name: Name of the source in ``datasync.current_source`` and in the log.
      allow_delayed_start: Start even if the broker cannot be reached.
      timeouts: Durations of the reader and the registry that differ from the defaults.
      codec: Decodes the ``value`` of every pair and change, instead of *serializer*.

    Threads: any.
    """

    @overload
    def __init__(
        self: Watcher[Message],
        broker: Broker,
        topic: str,
        prefix: str = ...,
        resync: Orchestrator | None = ...,
        serializer: Serializer | None = ...,
        *,
        partition: int | None = ...,
        name: str | None = ...,
        allow_delayed_start: bool = ...,
        timeouts: Timeouts | None = ...,
        codec: None = ...,
    ) -> None: ...
    @overload
    def __init__(
        self,
        broker: Broker,
        topic: str,
        prefix: str = ...,
        resync: Orchestrator | None = ...,
        serializer: Serializer | None = ...,
        *,
        partition: int | None = ...,
        name: str | None = ...,
        allow_delayed_start: bool = ...,
        timeouts: Timeouts | None = ...,
        codec: Codec[T],
    ) -> None: ...
    def __init__(
        self,
        broker: Broker,
        topic: str,
        prefix: str = ROOT,
        resync: Orchestrator | None = None,
        serializer: Serializer | None = None,
        *,
        partition: int | None = None,
        name: str | None = None,
        allow_delayed_start: bool = False,
        timeouts: Timeouts | None = None,
        codec: Codec[Any] | None = None,
    ) -> None:
        check_serializer(serializer)
        store = TopicStore(broker, topic, partition)
        super().__init__(
            store,
            prefix,
            resync,
            serializer or SerializerJSON(),
            name=name,
            allow_delayed_start=allow_delayed_start,
            timeouts=timeouts,
            codec=codec,
            subject=f"the watcher of {store.name}",
        )

    def wait_for(self, write: int | HasRevision, timeout: float = WAIT_TIMEOUT) -> None:
        """Wait until the mirror has *write*: the result of a ``put`` or ``delete`` to the partition, or a revision.

        Raises:
          DoneTimeout: The mirror does not have it after *timeout* seconds.
          UnknownOutcome: The topic went back meanwhile: the write may be lost.
          InvalidArgumentError, ClosedError, ForkedError.

        Threads: any; no lock is held while waiting. Source: contract C21.
        """
        self._guard.check()
        self.registry.wait_for(write, timeout)

    def _release(self) -> None:
        self._kv.close()  # ends a listing too
