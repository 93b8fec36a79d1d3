"""A live, read-only mapping of the values under some prefixes.

Source: contract C20, C21.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Hashable, ItemsView, Iterator, KeysView, Mapping, ValuesView
from queue import Queue
from typing import Any, Generic, TypeVar, overload
from weakref import WeakValueDictionary

from datasync.api import KeyValProtoWatcher
from datasync.codecs.api import Codec
from datasync.consumer.pairs import JSON
from datasync.consumer.view.condition import ViewState, ViewStatus
from datasync.consumer.view.frozen import same
from datasync.consumer.view.index import IndexFunction
from datasync.consumer.view.live import Attached, LiveValues, ViewOptions
from datasync.consumer.view.notices import BatchListener, Listeners, ValueChange, each_key
from datasync.consumer.view.overlay import ABSENT, Overlay
from datasync.consumer.view.table import Moment
from datasync.errors import DecodeError, InvalidArgumentError
from datasync.runtime.closing import Closable

T = TypeVar("T")
D = TypeVar("D")


class _Entrance:
    """Stands for the values of *view* where it cannot be read yet: before its first use, and in a forked child.

    So a read of an open view need not check anything.
    """

    __slots__ = ("_view",)

    def __init__(self, view: View[Any]) -> None:
        self._view = view

    def __getitem__(self, key: str) -> Any:
        return self._view.here().values[key]

    def get(self, key: str, default: Any) -> Any:
        return self._view.here().values.get(key, default)

    def __contains__(self, key: object) -> bool:
        return key in self._view.here().values

    def __len__(self) -> int:
        return len(self._view.here().values)


_views: WeakValueDictionary[int, View[Any]] = WeakValueDictionary()


#: Held while an override begins or ends: another thread that does so must not show what it has found before. Readers
#: take no lock, and a forked child has a new one.
_overriding = threading.RLock()


def _after_fork_in_child() -> None:
    global _overriding
    _overriding = threading.RLock()
    for view in list(_views.values()):
        view.leave_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


class View(Mapping[str, T], Closable, Generic[T]):
    """A live, read-only mapping from each key under *prefixes* to its last good value.

    A value that the codec cannot decode changes nothing: its key keeps the value that it had, :attr:`problems` names
    it, and the key alone is rejected. JSON objects and arrays are frozen: changing one raises ``TypeError``.

    Args:
      watcher: Any transport, or an aggregate whose members have no key in common. The view does not close it.
      name: The resync name, unique in *watcher*.
      prefixes: Plain strings, relative to the watcher's prefix; everything when none is given.
      codec: Encodes and decodes the values; strict JSON by default.
      defaults: Values of keys that the source does not have.
      max_stale: Seconds for which the source may be lost before the state is STALE; 0 by default.
      settle: Shortest and longest seconds for which changes are gathered before listeners are called. The first state
        is not delayed.
      max_delete: The most deletes of one RESYNC, a number of keys or a share of them from 0.0 to 1.0; more are held
        until :meth:`release`.

    Raises:
      SubscriptionError: The name is taken.
      InvalidArgumentError: An option is invalid.

    Threads: any; reading one key takes no lock. It runs one thread. In a forked child every use but ``close`` raises
    ``ForkedError``: see ``open_view`` for a view that opens again there.
    Source: contract C20.
    """

    #: What a test shows; made when it is needed.
    _overlay: Overlay | None = None

    @overload
    def __init__(
        self: View[Any],
        watcher: KeyValProtoWatcher,
        name: str,
        *prefixes: str,
        defaults: Mapping[str, Any] | None = ...,
        max_stale: float | None = ...,
        settle: tuple[float, float] | None = ...,
        max_delete: float | None = ...,
    ) -> None: ...
    @overload
    def __init__(
        self,
        watcher: KeyValProtoWatcher,
        name: str,
        *prefixes: str,
        codec: Codec[T],
        defaults: Mapping[str, T] | None = ...,
        max_stale: float | None = ...,
        settle: tuple[float, float] | None = ...,
        max_delete: float | None = ...,
    ) -> None: ...
    def __init__(
        self,
        watcher: KeyValProtoWatcher,
        name: str,
        *prefixes: str,
        codec: Codec[T] = JSON,
        defaults: Mapping[str, T] | None = None,
        max_stale: float | None = None,
        settle: tuple[float, float] | None = None,
        max_delete: int | float | None = None,
    ) -> None:
        if not isinstance(watcher, KeyValProtoWatcher):
            raise InvalidArgumentError(f"a view needs a watcher, not a {type(watcher).__name__}")
        self._listeners = Listeners()
        options = ViewOptions(codec, defaults or {}, None, max_stale, settle, max_delete).checked()
        queue: Queue[Any] = Queue()
        self._options = options
        self._live: LiveValues[T] = LiveValues(name, options, queue, self._listeners, {})
        prefixes = prefixes or ("",)
        registration = watcher.watch(name, queue, queue, *prefixes)
        self._live.start(lambda: Attached(watcher, (registration,), prefixes))
        self._enter(self._live.values)

    def _enter(self, values: dict[str, Any] | None) -> None:
        """Read from *values*, or find them at the next read. Also in the child of a fork that comes at any moment."""
        _views[id(self)] = self
        self._beneath: dict[str, Any] | _Entrance = _Entrance(self) if values is None else values
        self._show()

    def _show(self) -> None:
        """Read from the overlay while there is something in it. Both may change meanwhile: then choose again."""
        while True:
            overlay, beneath = self._overlay, self._beneath
            shown = overlay if overlay else beneath
            self._values: Any = shown
            if (self._overlay or self._beneath) is shown:
                return

    def override(self, mark: object, values: Mapping[str, Any] | None) -> None:
        """Show *values* in place of those of the source, until the next call with this *mark* and None. For tests."""
        overlay = self.__dict__.setdefault("_overlay", Overlay(lambda: self._beneath, self._snapshot_beneath))
        self._listeners.hidden = overlay.covers
        with _overriding:
            keys = overlay.keys(mark) if values is None else values.keys()
            before = {key: self._told(key) for key in keys}
            overlay.set(mark, values)
            self._show()
            changed = {key: ValueChange(old, self._told(key)) for key, old in before.items()}
        self._listeners.announce({key: one for key, one in changed.items() if not same(one.old, one.new)})

    def _told(self, key: str) -> Any:
        """Return the value of *key* as listeners receive it. It must not open anything."""
        assert self._overlay is not None
        if isinstance(self._beneath, _Entrance) and not self._overlay.covers(key):
            return None
        value = self._overlay.read(key)
        return None if value is ABSENT else value

    def _snapshot_beneath(self) -> Mapping[str, Any]:
        return self.here().table.snapshot()

    def moment(self) -> Moment:
        """Return the values and the problems of one moment; the same object until one of them changes."""
        return self.here().table.moment()

    def on_fixed(self, function: Callable[[], object]) -> None:
        """Call *function* when a value that could not be decoded is the last good one again. For settings."""
        self._listeners.fixed = function

    @property
    def codec(self) -> Codec[T]:
        """The codec of the values."""
        return self._options.codec

    def leave_parent(self) -> None:
        """Forget, in a forked child, what the parent opened."""
        self._enter(None)

    def here(self) -> LiveValues[T]:
        """Return what keeps the values in this process."""
        live = self._live
        live.guard.check()
        return live

    def __getitem__(self, key: str) -> T:
        value: T = self._values[key]
        return value

    @overload
    def get(self, key: str, /) -> T | None: ...
    @overload
    def get(self, key: str, /, default: T | D) -> T | D: ...
    def get(self, key: str, /, default: Any = None) -> Any:
        """Return the value of *key*, or *default*."""
        return self._values.get(key, default)

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the keys of one moment."""
        return iter(self.snapshot())

    def keys(self) -> KeysView[str]:
        """Return the keys of one moment."""
        return self.snapshot().keys()

    def values(self) -> ValuesView[T]:
        """Return the values of one moment."""
        return self.snapshot().values()

    def items(self) -> ItemsView[str, T]:
        """Return the keys and values of one moment."""
        return self.snapshot().items()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"  # no value, and it must not open anything

    def snapshot(self) -> Mapping[str, T]:
        """Return all values of one moment, which never change. It is the same object until a value changes."""
        return self._overlay.snapshot() if self._overlay else self.here().table.snapshot()

    @property
    def problems(self) -> Mapping[str, DecodeError]:
        """The keys whose stored value is not valid, with the reason; the last good value of each is kept."""
        return self.here().table.problems

    @property
    def held(self) -> frozenset[str]:
        """The keys whose deletion ``max_delete`` holds back."""
        return self.here().table.held

    def release(self) -> int:
        """Delete the keys that ``max_delete`` holds back; return their number."""
        return self.here().release()

    @property
    def state(self) -> ViewState:
        """The state; see :meth:`status`."""
        return self.status().state

    @property
    def synced(self) -> bool:
        """True once the whole state of every source was read in this process."""
        return self.here().synced

    @property
    def stale(self) -> bool:
        """True while the values may be old: the source is lost or was not read yet."""
        return self.state is not ViewState.READY

    def status(self) -> ViewStatus:
        """Return the state, the time since which it holds, and the error of the source."""
        return self.here().status()

    def wait_synced(self, timeout: float = 10.0) -> None:
        """Wait until the whole state of every source was read.

        Raises:
          NotReadyError: It was not within *timeout* seconds; the message has the source's error.
          ClosedError: The view is closed.
        """
        self.here().wait_synced(timeout)

    def on_change(self, function: Callable[[str, Any, Any], object]) -> Callable[[], None]:
        """Call *function* with key, old and new value at each real difference; None stands for no value.

        It is called in the view's thread, after the view has the new value and without a lock; an exception is logged
        and harms no other listener. The first state counts as differences too.

        Returns:
          The function that ends it.
        """
        return self.on_changes(each_key(function))

    def on_changes(self, function: BatchListener) -> Callable[[], None]:
        """Call *function* with all differences of one event, by key; otherwise as :meth:`on_change`."""
        if not callable(function):
            raise InvalidArgumentError(f"a listener must be callable, not a {type(function).__name__}")
        return self._listeners.add(function)

    def index(self, name: str, function: IndexFunction) -> None:
        """Keep the keys by ``function(key, value)``: one hashable object, or a list, tuple or set of them.

        *function* must be quick and must not use the view. A key for which it raises is in no entry of the index.
        """
        self.here().table.add_index(name, function)

    def by_index(self, name: str, value: Hashable) -> dict[str, T]:
        """Return the keys and values for which the index *name* has *value*.

        Raises:
          InvalidArgumentError: There is no such index.
        """
        if self._overlay:
            return self._overlay.by_index(self.here().table.terms(name), value)
        return self.here().table.by_index(name, value)

    def put(self, key: str, value: T, timeout: float = 5.0) -> None:
        """Write *value* and return when the view has it, or something newer (C21).

        Raises:
          InvalidArgumentError: The codec cannot encode *value*, no prefix of the view matches *key*, or a listener
            calls: nothing was written.
          UnsupportedError: The watcher is no ``kvdbsync.Plugin``, or its store has no revisions: nothing was written.
          DoneTimeout: It was written, and did not arrive within *timeout* seconds.
          UnknownOutcome: The store did not answer, or it went back in time after the write, which may be lost.
          StoreError, ClosedError, NotReadyError.
        """
        self.here().put(key, value, timeout)

    def close(self) -> None:
        """End the subscription and the thread; the last values can still be read. May be called twice."""
        self._live.close()
