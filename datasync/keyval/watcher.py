"""Watching a store without a registry: a callback for each change, in order, with the value before.

For applications that want a key or two; ``kvdbsync.Plugin`` is the road for configuration and state.

Source: cn-infra ``db/keyval`` ``BytesWatcher``, ``ProtoWatcher``; D53 (its channels dropped events), D33.
"""

from __future__ import annotations

import logging
import threading
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
from datasync.serializer import Serializer, SerializerJSON

log = logging.getLogger(__name__)

#: Seconds that ``watch`` waits for the state that later changes are compared with.
START_TIMEOUT = 5.0


class WatchResp(NamedTuple):
    """One change: the bytes in ``value`` (None for a delete) and ``previous`` (None for a create), or as messages."""

    key: str
    op: Op
    revision: int
    value: bytes | None
    previous: bytes | None
    serializer: Serializer

    def get_key(self) -> str:
        return self.key

    def get_revision(self) -> int:
        return self.revision

    def get_change_type(self) -> Op:
        return self.op

    def get_value(self, message: MessageT) -> MessageT:
        """Clear *message*, fill it (a delete leaves it empty) and return it. Raises ``DecodeError``."""
        message.Clear()
        return message if self.value is None else self.serializer.unmarshal(self.value, message)

    def get_prev_value(self, message: Message | None) -> bool:
        """Fill *message* with the value before; False when there was none. Raises ``DecodeError``."""
        if message is not None:
            message.Clear()
            if self.previous is not None:
                self.serializer.unmarshal(self.previous, message)
        return self.previous is not None

    def __repr__(self) -> str:
        return f"<WatchResp {self.op.value} {self.key!r} revision {self.revision}>"


class Watcher:
    """Watches *store* under *prefix*; keys come relative to it. Threads: any.

    Source: contract section 4 (``new_watcher``).
    """

    def __init__(self, store: StoreDriver, prefix: str = ROOT, serializer: Serializer | None = None) -> None:
        self._store = store
        self._prefix = prefix
        self._serializer = serializer or SerializerJSON()

    def watch(
        self, callback: Callable[[WatchResp], object], *key_prefixes: str, timeout: float = START_TIMEOUT
    ) -> Watch:
        """Call *callback* for each change from now on, from one thread.

        After a break the changes are resumed; where the store cannot, what is different is told as changes. What
        *callback* raises is logged and stops nothing.

        Args:
          key_prefixes: Which keys; all when none is given.
          timeout: Seconds to wait for the store's present state.

        Returns:
          The running watch; close it.

        Raises:
          InvalidArgumentError: *callback* is not callable or a prefix is no string.
          NotReadyError: The store could not be read in time.
        """
        if not callable(callback):
            raise InvalidArgumentError(f"a watch needs a callable, not {type(callback).__name__}")
        for prefix in key_prefixes:
            if not isinstance(prefix, str):
                raise InvalidArgumentError(f"a key prefix must be a string, not {type(prefix).__name__}")
        watch = Watch(self._store, self._prefix, key_prefixes or (ROOT,), callback, self._serializer)
        watch.start(timeout)
        return watch


class Watch(Closable):
    """A running watch. Threads: any; a context manager that closes it."""

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
        self._known: dict[str, tuple[int, bytes]] = {}  # touched by the reader's thread only
        self._closed = False
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self._reader = StoreReader(store, prefix, self)

    def start(self, timeout: float) -> None:
        """Begin, and wait for the present state."""
        self._reader.start()
        try:
            ready = self._ready.wait(timeout)
        except BaseException:  # ^C, or a timeout that is none: nobody has the watch yet who could close it
            self.close()
            raise
        if isinstance(self._error, (ClosedError, ForkedError)):
            self.close()
            raise self._error
        if not ready:
            self.close()
            why = f": {self._error}" if self._error is not None else ""
            raise NotReadyError(f"{self._name} was not read within {timeout:.1f} s{why}") from self._error

    def close(self) -> None:
        """End it; may be called twice and from the callback, which is not called after that."""
        self._closed = True
        self._reader.close()

    # The reader's sink.

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
            self._ready.set()  # the reader ends with it: there is nothing to wait for

    def _tell(self, key: str, revision: int, value: bytes | None, previous: bytes | None) -> None:
        if self._closed or not key.startswith(self._wanted):
            return
        op = Op.DELETE if value is None else Op.PUT
        try:
            self._callback(WatchResp(key, op, revision, value, previous, self._serializer))
        except BaseException:  # sys.exit() too: this thread is not the callback's to end
            log.exception("%s: the callback of a watch raised at %r", self._name, key)
