"""The recorder of a watcher's log: queues record each put at the moment it happens, and each acknowledgement."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from queue import Queue
from typing import Any

from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import BytesValue

from datasync.context import current_source
from datasync.errors import Rejected, RetryAfter
from datasync.events import ChangeEvent, MessageT, Op, ResyncEvent
from tests.faults.history import (
    Answered,
    Answering,
    Asked,
    Entry,
    Gone,
    Log,
    PutChange,
    PutResync,
    Seen,
    Watched,
    brief,
)


class RawSerializer:
    """Stores the only field of the message: histories are about order, not about formats."""

    def marshal(self, message: Message) -> bytes:
        assert isinstance(message, BytesValue)
        return message.value

    def unmarshal(self, data: bytes, message: MessageT) -> MessageT:
        assert isinstance(message, BytesValue)
        message.value = data
        return message


class Recorder:
    """The log of one watcher, or one for each member of an aggregate, whose names are *sources*.

    Threads: any; the entries are in the order in which things happened.
    """

    def __init__(self, name: str, abandon: float, sources: Sequence[str] = ("",)) -> None:
        self.logs = [Log(name, abandon, source=source) for source in sources]
        self.log = self.logs[0]
        self._of = {log.source: log for log in self.logs}
        self._lock = threading.Lock()
        #: Events that were put so far, and the estimated bytes of the log.
        self.count = self.size = 0

    def watched(self, prefixes: tuple[str, ...], in_flight: int, source: str | None = None) -> None:
        """Record the registration with the member *source*, or with all."""
        for log in self.logs if source is None else [self._of[source]]:
            self._note(Watched(time.monotonic(), prefixes, in_flight), log)

    def asked(self, what: str, prefix: str, over: bool) -> None:
        for log in self.logs:
            self._note(Asked(time.monotonic(), what, prefix, over), log)

    def put(self, event: Any) -> PutChange | PutResync:
        """Record the put of *event*; called with the mutex of the queue held, before a consumer can take the event."""
        log = self._log(event)
        with self._lock:
            entry = _read(event, self.count)
            entry.source = log.source
            self.count += 1
            self.size += _size(entry)
            log.entries.append(entry)
            return entry

    def done(self, number: int, event: Any, error: BaseException | None = None) -> bool:
        """Answer *event* and note both the beginning and the outcome."""
        log = self._log(event)
        self._note(_answering(number, error), log)
        first: bool = event.done(error)
        self._note(Answered(time.monotonic(), number, first), log)
        return first

    def not_taken(self, event: Any, error: BaseException) -> None:
        """Record that the queue raised *error* instead of taking *event*: the library takes that as its answer."""
        number = self.put(event).number
        self._note(_answering(number, error), self._log(event))
        self._note(Answered(time.monotonic(), number, True), self._log(event))

    def _log(self, event: Any) -> Log:
        """The log of the source of *event*."""
        return self.log if len(self.logs) == 1 else self._of[event.get_context().run(current_source.get)]

    def _note(self, entry: Entry, log: Log) -> None:
        with self._lock:
            log.entries.append(entry)


class RecordingQueue(Queue[Any]):
    """A queue that tells *recorder* of each put; what comes out is the record of an event and the event.

    Nobody else keeps the event: whether its consumer still does is what the memory of the process is watched for.
    """

    def __init__(self, recorder: Recorder, maxsize: int = 0) -> None:
        super().__init__(maxsize)
        self._recorder = recorder

    def _put(self, item: Any) -> None:
        super()._put((self._recorder.put(item), item))


def _read(event: Any, number: int) -> PutChange | PutResync:
    """Everything that a consumer can read from *event*."""
    now = getattr(event, "put_at", time.monotonic())  # the moment from which the acknowledgement is awaited
    if isinstance(event, ResyncEvent):
        values = {
            prefix: {kv.get_key(): brief(kv.get_value(BytesValue()).value) for kv in pairs}
            for prefix, pairs in event.get_values().items()
        }
        gone = event.get_removed()
        removed = [Gone(kv.get_key(), brief(kv.get_value(BytesValue()).value), kv.get_revision()) for kv in gone]
        return PutResync(now, number, event.reason, event.revision, values, removed)
    assert isinstance(event, ChangeEvent)
    return PutChange(now, number, [_seen(change) for change in event.get_changes()], event.redelivery)


def _answering(number: int, error: BaseException | None) -> Answering:
    if not isinstance(error, Rejected):
        return Answering(time.monotonic(), number, error is not None)
    after = {key: one.seconds for key, one in error.errors.items() if isinstance(one, RetryAfter)}
    return Answering(time.monotonic(), number, True, frozenset(error.errors), after)


def _size(entry: PutChange | PutResync) -> int:
    """Estimated bytes of the entry and of the two entries of its acknowledgement."""
    pairs = len(entry.changes) if isinstance(entry, PutChange) else sum(map(len, entry.values.values()))
    return 1000 + 300 * pairs


def _seen(change: Any) -> Seen:
    before = BytesValue()
    existed = change.get_prev_value(before)
    op = change.get_change_type()
    value = None if op is Op.DELETE else brief(change.get_value(BytesValue()).value)
    return Seen(change.get_key(), op, change.get_revision(), value, brief(before.value) if existed else None)
