"""Watching a store without a registry: a callback for each change, in order, with the previous value.

This suits applications that need a few keys; use ``kvdbsync.Plugin`` for configuration and state.

Source: cn-infra ``db/keyval`` ``BytesWatcher`` and ``ProtoWatcher``, whose channels dropped events.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from google.protobuf.message import Message

from datasync.commits import Batch
from datasync.errors import ClosedError, ForkedError, InvalidArgumentError, NotReadyError
from datasync.events import MessageT, Op, ResyncReason
from datasync.keyval.driver import StoreDriver
from datasync.keyval.reader import StoreReader
from datasync.keyval.types import ROOT
from datasync.runtime.closing import Closable
from datasync.runtime.logs import get_logger
from datasync.runtime.threads import Flag
from datasync.runtime.timeouts import check_timeout
from datasync.serializer import Serializer, SerializerJSON

log = get_logger(__name__)

#: Seconds that ``watch`` waits for the initial state, with which later changes are compared.
START_TIMEOUT = 5.0


class WatchResp(NamedTuple):
    """One change, as bytes (``value`` is None for a delete, ``previous`` for a create) or as messages."""

    key: str
    op: Op
    revision: int
    value: bytes | None
    previous: bytes | None
    serializer: Serializer

    @property
    def raw(self) -> bytes | None:
        """As ``value``."""
        return self.value

    @property
    def previous_raw(self) -> bytes | None:
        """As ``previous``."""
        return self.previous

    def get_key(self) -> str:
        return self.key

    def get_revision(self) -> int:
        return self.revision

    def get_change_type(self) -> Op:
        return self.op

    def get_value(self, message: MessageT) -> MessageT:
        """Clear *message*, fill it with the new value and return it; empty for a delete. Raises ``DecodeError``."""
        message.Clear()
        return message if self.value is None else self.serializer.unmarshal(self.value, message)

    def get_prev_value(self, message: Message | None) -> bool:
        """Fill *message* with the previous value. Return False if there was none. Raises ``DecodeError``."""
        if message is not None:
            message.Clear()
            if self.previous is not None:
                self.serializer.unmarshal(self.previous, message)
        return self.previous is not None

    def __repr__(self) -> str:
        return f"<WatchResp {self.op.value} {self.key!r} revision {self.revision}>"


class Watcher:
    """Watches *store* under *prefix*; keys are reported relative to the prefix. Threads: any."""

    def __init__(self, store: StoreDriver, prefix: str = ROOT, serializer: Serializer | None = None) -> None:
        self._store = store
        self._prefix = prefix
        self._serializer = serializer or SerializerJSON()

    def watch(
        self, callback: Callable[[WatchResp], object], *key_prefixes: str, timeout: float = START_TIMEOUT
    ) -> Watch:
        """Call *callback* for each change from now on, from one thread.

        After a disconnection the watch resumes. If the store cannot resume, the watch compares the new state with the
        last known one and reports the differences as changes. An exception of *callback* is logged; the watch goes on.

        Args:
          key_prefixes: The prefixes of the keys to watch; all keys by default.
          timeout: Seconds to wait for the initial state.

        Returns:
          The running watch. Close it when it is no longer needed.

        Raises:
          InvalidArgumentError: *callback* is not callable, or a prefix is not a string.
          NotReadyError: The store could not be read in time.
        """
        timeout = check_timeout(timeout)
        if not callable(callback):
            raise InvalidArgumentError(f"a watch needs a callable, not {type(callback).__name__}")
        for prefix in key_prefixes:
            if not isinstance(prefix, str):
                raise InvalidArgumentError(f"a key prefix must be a string, not {type(prefix).__name__}")
        watch = Watch(self._store, self._prefix, key_prefixes or (ROOT,), callback, self._serializer)
        watch.start(timeout)
        return watch


class Watch(Closable):
    """A running watch. Threads: any."""

    def __init__(
        self,
        store: StoreDriver,
        prefix: str,
        wanted: tuple[str, ...],
        callback: Callable[[WatchResp], object],
        serializer: Serializer,
    ) -> None:
        self._name = store.name
        self._wanted = wanted
        self._callback = callback
        self._serializer = serializer
        self._known: dict[str, tuple[int, bytes]] = {}  # used by the reader's thread only
        self._closed = False
        self._ready = Flag()
        self._error: BaseException | None = None
        self._reader = StoreReader(store, prefix, self)

    def start(self, timeout: float) -> None:
        """Start the reader and wait for the initial state."""
        self._reader.start()
        try:
            ready = self._ready.wait(timeout)
            if isinstance(self._error, (ClosedError, ForkedError)):
                raise self._error
            if not ready:
                why = f": {self._error}" if self._error is not None else ""
                raise NotReadyError(f"{self._name} could not be read within {timeout:.1f} s{why}") from self._error
        except BaseException:  # also ^C, or an invalid timeout: the caller has no watch yet that it could close
            self.close()
            raise

    def close(self) -> None:
        """End the watch. May be called twice and from the callback. No callback starts after that."""
        self._closed = True
        self._reader.close()

    # The methods of ``ReaderSink``.

    def feed_snapshot(self, revision: int, entries: dict[str, tuple[int, bytes]], reason: ResyncReason) -> None:
        before, self._known = self._known, entries
        if reason is not ResyncReason.INITIAL:
            for key, (_, previous) in before.items():
                if key not in entries:
                    self._tell(key, revision, None, previous)
            for key, (changed, value) in entries.items():
                old = before.get(key)
                if old is None or old[1] != value:
                    self._tell(key, changed, value, None if old is None else old[1])
        self._ready.set()

    def feed_changes(self, batch: Batch) -> None:
        for commit in batch.commits:
            for key, value in commit.ops:
                old = self._known.pop(key, None)
                if value is not None:
                    self._known[key] = (commit.revision, value)
                if value is not None or old is not None:
                    self._tell(key, commit.revision, value, None if old is None else old[1])

    def source_lost(self, error: BaseException) -> None:
        self._error = error
        if isinstance(error, (ClosedError, ForkedError)):
            self._ready.set()  # the reader ends with this error, so no state will arrive

    def _tell(self, key: str, revision: int, value: bytes | None, previous: bytes | None) -> None:
        if self._closed or not key.startswith(self._wanted):
            return
        op = Op.DELETE if value is None else Op.PUT
        try:
            self._callback(WatchResp(key, op, revision, value, previous, self._serializer))
        except BaseException:  # also sys.exit(): the callback must not end the reader's thread
            log.exception("%s: the callback of a watch raised for the change of %r", self._name, key)
