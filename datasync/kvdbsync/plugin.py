"""A key-value store as a transport: a watcher and a writer.

Source: cn-infra ``datasync/kvdbsync``; contract C2, C10-C14, C17, C18.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast, overload

from google.protobuf.message import Message

from datasync.api import WAIT_TIMEOUT
from datasync.checks import check_serializer
from datasync.codecs.api import Codec, encode_value
from datasync.commits import HasRevision, WriteResult
from datasync.errors import ClosedError, InvalidArgumentError, NotReadyError
from datasync.keyval.api import Store
from datasync.keyval.broker import BytesBroker
from datasync.keyval.kvproto import ProtoBroker
from datasync.keyval.mirror import StoreMirror
from datasync.keyval.types import ROOT
from datasync.options import DelOption, PutOption
from datasync.resync.orchestrator import Plugin as Orchestrator
from datasync.runtime.logs import get_logger
from datasync.runtime.timeouts import Timeouts
from datasync.runtime.timers import SYSTEM_CLOCK, Clock
from datasync.serializer import Serializer, SerializerJSON

if TYPE_CHECKING:  # ``Plugin`` without a parameter means messages, as it did before there were codecs
    from typing_extensions import TypeVar

    T = TypeVar("T", default=Message)
else:
    from typing import TypeVar

    T = TypeVar("T")

log = get_logger(__name__)


class Plugin(StoreMirror[T]):
    """A mirror of everything under *prefix* of a store, which it delivers to subscribers; also writes to the store.

    One thread follows the store, whatever the number of subscriptions: choose the narrowest sufficient *prefix*.
    Subscribers receive keys relative to *prefix*.

    Args:
      kv: The store; the plugin does not close it.
      prefix: Plain string in front of every key, such as ``servicelabel.agent_prefix("vpp1")``.
      resync: Orchestrator of the subscriptions; the first RESYNC waits for its first ``do_resync()``. Without an
        orchestrator the first RESYNC is sent as soon as the store was read.
      serializer: Encodes and decodes messages; protojson by default.
      name: Name of the source in ``datasync.current_source`` and in the log, which distinguishes two plugins on one
        store. The default is the store's name, followed by ``#`` and *prefix* if there is one.
      allow_delayed_start: Start even if the store cannot be reached, and read it when it can.
      timeouts: Durations of the reader and the registry that differ from the defaults.
      clock: Replaces the monotonic clock of the registry, in tests.
      codec: Encodes what ``put`` writes and decodes the ``value`` of every pair and change. Without one, values are
        messages, which *serializer* encodes.

    Threads: any.
    Source: Go ``kvdbsync.Plugin``.
    """

    @overload
    def __init__(
        self: Plugin[Message],
        kv: Store,
        prefix: str = ...,
        resync: Orchestrator | None = ...,
        serializer: Serializer | None = ...,
        *,
        name: str | None = ...,
        allow_delayed_start: bool = ...,
        timeouts: Timeouts | None = ...,
        clock: Clock = ...,
        codec: None = ...,
    ) -> None: ...
    @overload
    def __init__(
        self,
        kv: Store,
        prefix: str = ...,
        resync: Orchestrator | None = ...,
        serializer: Serializer | None = ...,
        *,
        name: str | None = ...,
        allow_delayed_start: bool = ...,
        timeouts: Timeouts | None = ...,
        clock: Clock = ...,
        codec: Codec[T],
    ) -> None: ...
    def __init__(
        self,
        kv: Store,
        prefix: str = ROOT,
        resync: Orchestrator | None = None,
        serializer: Serializer | None = None,
        *,
        name: str | None = None,
        allow_delayed_start: bool = False,
        timeouts: Timeouts | None = None,
        clock: Clock = SYSTEM_CLOCK,
        codec: Codec[Any] | None = None,
    ) -> None:
        if not isinstance(kv, Store):
            raise InvalidArgumentError(f"kv must be a store from keyval.connect(), not {type(kv).__name__}")
        check_serializer(serializer)
        serializer = serializer or SerializerJSON()
        super().__init__(
            kv,
            prefix,
            resync,
            serializer,
            name=name,
            allow_delayed_start=allow_delayed_start,
            timeouts=timeouts,
            codec=codec,
            clock=clock,
            subject=f"the plugin of {kv.name}",
        )
        self._store = kv
        self._bytes = BytesBroker(kv, prefix)
        self._broker = ProtoBroker(self._bytes, serializer)

    @property
    def store(self) -> Store:
        """The store."""
        return self._store

    @property
    def prefix(self) -> str:
        """The prefix of every key in the store."""
        return self._prefix

    def put(self, key: str, data: T, *opts: PutOption) -> WriteResult:
        """Write *data* under *key*: a value of the plugin's codec, or a message if it has none.

        Returns:
          The result with the revision, for ``wait_for`` and ``wait_synced``.

        Raises:
          NotReadyError: The plugin was not started.
          InvalidArgumentError, UnsupportedError: Nothing was written, for example because the codec could not read back
            what it would have to write.
          UnknownOutcome: The value may or may not have been written; the plugin does not retry.
          StoreError, ClosedError, ForkedError.
        """
        self._check_started(key)
        seen = self.registry.position
        if self._codec is None:
            result = self._broker.put(key, cast("Message", data), *opts)
        else:
            result = self._bytes.put(key, encode_value(key, self._codec, data), *opts)
        return self.registry.own_write(key, result.revision, True, seen)

    def put_raw(self, key: str, data: bytes, *opts: PutOption) -> WriteResult:
        """Write the bytes *data* under *key*; return the result with the revision. Raises as ``put``."""
        self._check_started(key)
        seen = self.registry.position
        return self.registry.own_write(key, self._bytes.put(key, data, *opts).revision, True, seen)

    def delete(self, key: str, *opts: DelOption) -> WriteResult:
        """Delete *key*, or all keys under it with ``with_prefix()``. Raises as ``put``.

        Returns:
          The result with the revision; it is true if any key existed.
        """
        self._check_started(key)
        seen = self.registry.position
        result = self._broker.delete(key, *opts)
        return self.registry.own_write(key, result.revision, result.changed, seen, prefix=bool(opts))

    def wait_for(self, write: int | HasRevision, timeout: float = WAIT_TIMEOUT) -> None:
        """Wait until the mirror has *write*: the result of a ``put``, ``delete`` or ``commit``, or a revision.

        Then ``get`` and ``items`` return what was written, or something newer. A write outside the plugin's prefix
        arrives only when the store tells its revision, which etcd does rarely. After a ``delete`` that found nothing,
        a wait on etcd ends when the mirror has none of the keys: what others put and deleted before may still arrive.

        Raises:
          NotReadyError: The plugin was not started.
          DoneTimeout: The mirror does not have it after *timeout* seconds.
          UnknownOutcome: The store went back in time meanwhile: the write may be lost.
          UnsupportedError: The store has no revisions.
          InvalidArgumentError, ClosedError, ForkedError.

        Threads: any; no lock is held while waiting. Source: contract C21.
        """
        self._check_started("wait_for()")
        self.registry.wait_for(write, timeout)

    def _check_started(self, key: str) -> None:
        self._guard.check()
        if self._closed:
            raise ClosedError(f"{key!r}: the plugin of {self._kv.name} is closed")
        if self._reader is None:
            raise NotReadyError(f"{key!r}: the plugin of {self._kv.name} was not started: call after_init()")
