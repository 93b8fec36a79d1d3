"""The library's own consumers as watchers of a cell: a Reconciler and a View over a watcher that records their events.

Their subscription is checked as any other one is. Beyond that, each checks what it promises itself: a Reconciler makes
one call per real difference and never two of one key at once; a View reports each difference once, old value and new.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Mapping
from queue import Queue
from typing import Any

from google.protobuf.wrappers_pb2 import BytesValue

from datasync import codecs
from datasync.aggregator import KVProtoWatchers
from datasync.api import KeyValProtoWatcher
from datasync.consumer.reconciler.reconciler import Reconciler
from datasync.consumer.reconciler.retry import Retry
from datasync.consumer.view.notices import ValueChange
from datasync.consumer.view.view import View
from datasync.errors import RetryAfter
from datasync.serializer import Serializer
from tests.faults.history import brief
from tests.faults.recorder import Recorder
from tests.faults.sources.aggregate_transport import Aggregate, sources_of

#: Watchers of this module that accept everything, and the share of the calls that fail in the other one.
ACCEPTING, FAILS = ("reconciler", "view"), 0.3
#: Seconds within which a failed call is repeated: short, so that a cell ends soon after its consumers were healed.
RETRY = Retry(first=0.02, most=0.2, rate=500.0)
#: Index of the views.
FIRST_BYTE = "first byte"


class Loop:
    """A consumer of the library that watches everything. Takes the place of a membership and of its consumer.

    Threads: ``view`` and the rest from the main one, calls from those of the library.
    """

    prefixes = ("",)

    def __init__(self, plugin: Any, serializer: Serializer, name: str, chance: random.Random, abandon: float) -> None:
        self.recorder = Recorder(name, abandon, sources_of(plugin))
        self.consumer = self
        self.closed = False
        self.errors: list[BaseException] = []
        self.talk_back: Callable[[random.Random], None] = lambda chance: None
        self._codec = codecs.message(BytesValue, serializer)
        self._watcher = _recording(plugin, self.recorder)
        self._chance = chance
        self._healed = threading.Event()
        self._lock = threading.Lock()  # guards the view and what the subclasses note
        self._view: dict[str, bytes] = {}

    @property
    def view(self) -> dict[str, bytes]:
        """What it was told, as a copy."""
        with self._lock:
            return dict(self._view)

    def start(self) -> None:
        """Register, and begin."""
        raise NotImplementedError

    def view_is(self, state: Mapping[str, bytes]) -> bool:
        """True when it was told *state*."""
        return self.view == state

    def change(self, chance: random.Random, names: list[str]) -> None:
        """Change no prefixes: it has no way to do so."""

    def heal(self) -> None:
        """Let no call fail from now on."""
        self._healed.set()

    def ask(self, errand: Callable[[], object]) -> None:
        """Call *errand* from a thread of its own."""
        threading.Thread(target=self._guarded, args=(errand,), name=f"errand-{self.recorder.log.name}").start()

    def close(self) -> None:
        """Leave; may be called twice."""
        self.closed = True
        self.recorder.asked("close", "", False)
        self._close()
        self.recorder.asked("close", "", True)

    def stop(self) -> None:
        """End it, when the transport is closed already."""
        self.heal()
        self._guarded(self._close)

    def _close(self) -> None:
        raise NotImplementedError

    def _guarded(self, body: Callable[[], object]) -> None:
        try:
            body()
        except BaseException as error:  # the runner raises it
            self.errors.append(error)

    def _wrong(self, key: str, what: str) -> None:
        self.errors.append(AssertionError(f"{self.recorder.log.name}: {what}, key {key!r}"))


class ReconcilerLoop(Loop):
    """A Reconciler with several workers, some of whose calls fail until it is healed."""

    def __init__(self, fails: float, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._fails = fails
        self._active: set[str] = set()
        self._failed: set[str] = set()
        self._errands: list[Callable[[], object]] = []

    def start(self) -> None:
        name, workers = self.recorder.log.name, self._chance.choice((1, 3))
        self._reconciler = Reconciler(
            self._watcher, name, apply=self._apply, codec=self._codec, workers=workers, retry=RETRY
        )

    def ask(self, errand: Callable[[], object]) -> None:
        """Call *errand* from a worker, if there is a key that it can be called for."""
        with self._lock:
            keys = list(self._view)[:1]
            if keys:
                self._errands.append(errand)
                self._failed.update(keys)  # asked for by hand, so without a difference
        if keys:
            self._reconciler.requeue(*keys)
        else:
            super().ask(errand)

    def _close(self) -> None:
        self._reconciler.close()

    def _apply(self, key: str, value: BytesValue | None, previous: BytesValue | None) -> None:
        new, old = _brief(value), _brief(previous)
        with self._lock:
            if key in self._active:
                self._wrong(key, "two calls at once")
            if key not in self._failed and self._view.get(key) == new:
                self._wrong(key, "a call without a difference")
            if self._view.get(key) != old:
                self._wrong(key, "another previous value than the one accepted last")
            self._active.add(key)
            errands, self._errands = self._errands, []
        for errand in errands:
            self._guarded(errand)
        dice = random.random  # by any worker: not the cell's own chance
        self._healed.wait(dice() * 0.002)
        fails = dice() < self._fails and not self._healed.is_set()
        with self._lock:
            self._active.discard(key)
            self._failed.discard(key)
            if fails:
                self._failed.add(key)
            elif new is None:
                self._view.pop(key, None)
            else:
                self._view[key] = new
        if fails:
            raise RetryAfter(0.05, "later") if dice() < 0.3 else ValueError("not this time")


class ViewLoop(Loop):
    """A View with a listener and an index."""

    def start(self) -> None:
        self._live: View[BytesValue] = View(self._watcher, self.recorder.log.name, codec=self._codec)
        self._live.index(FIRST_BYTE, lambda key, value: value.value[:1])
        self._live.on_changes(self._changed)

    def view_is(self, state: Mapping[str, bytes]) -> bool:
        seen = {key: brief(value.value) for key, value in self._live.snapshot().items()}
        if seen != state:
            return False
        with self._lock:
            told = {key: value for key, value in self._view.items() if key in seen}
        firsts = {value.value[:1] for value in self._live.snapshot().values()}
        indexed = {key for first in firsts for key in self._live.by_index(FIRST_BYTE, first)}
        return all(seen[key] == value for key, value in told.items()) and indexed == set(seen)

    def _close(self) -> None:
        self._live.close()

    def _changed(self, changes: Mapping[str, ValueChange[BytesValue]]) -> None:
        with self._lock:
            for key, change in changes.items():
                old, new = _brief(change.old), _brief(change.new)
                if key in self._view and self._view[key] != old:
                    self._wrong(key, "another old value than the one reported last")
                if old == new:
                    self._wrong(key, "a change without a difference")
                if new is None:
                    self._view.pop(key, None)
                else:
                    self._view[key] = new


def make_loop(manners: str, *arguments: Any) -> Loop:
    """Make, but do not start, the watcher that is called *manners*; the rest is for ``Loop``."""
    if manners == "view":
        return ViewLoop(*arguments)
    return ReconcilerLoop(FAILS if manners == "failing-reconciler" else 0.0, *arguments)


def _brief(message: BytesValue | None) -> bytes | None:
    return None if message is None else brief(message.value)


def _recording(plugin: Any, recorder: Recorder) -> KeyValProtoWatcher:
    """*plugin* as a watcher that records; of an aggregate, one as the user makes it."""
    if isinstance(plugin, Aggregate):
        return KVProtoWatchers(_RecordingWatcher(one, recorder, one.registry.name) for one in plugin.members)
    return _RecordingWatcher(plugin, recorder)


class _RecordingWatcher(KeyValProtoWatcher):
    """A watcher whose only subscription is recorded."""

    def __init__(self, plugin: Any, recorder: Recorder, source: str | None = None) -> None:
        self._plugin = plugin
        self._recorder = recorder
        self._source = source

    def watch(self, resync_name: str, change_queue: Any, resync_queue: Any, *key_prefixes: str, **options: Any) -> Any:
        self._recorder.watched(key_prefixes or ("",), options.get("in_flight", 1), self._source)
        queue = _RecordingInbox(self._recorder, change_queue)
        assert change_queue is resync_queue
        return self._plugin.watch(resync_name, queue, queue, *key_prefixes, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._plugin, name)


class _RecordingInbox(Queue[Any]):
    """Passes events on to the queue of a consumer, each with a ``done`` that is recorded."""

    def __init__(self, recorder: Recorder, inbox: Queue[Any]) -> None:
        super().__init__()
        self._recorder = recorder
        self._inbox = inbox

    def put_nowait(self, item: Any) -> None:
        entry = self._recorder.put(item)
        self._inbox.put_nowait(_RecordedEvent(self._recorder, entry.number, item))


class _RecordedEvent:
    def __init__(self, recorder: Recorder, number: int, event: Any) -> None:
        self._recorder = recorder
        self._number = number
        self._event = event

    @property
    def __class__(self) -> Any:
        return type(self._event)

    def done(self, error: BaseException | None = None) -> bool:
        return self._recorder.done(self._number, self._event, error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._event, name)
