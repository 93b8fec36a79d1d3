"""The notifications of a view: the real differences, gathered over bursts when asked.

Source: contract C20.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from datasync.consumer.view.frozen import same
from datasync.errors import InvalidArgumentError
from datasync.runtime.logs import get_logger

log = get_logger(__name__)


class ValueChange(NamedTuple):
    """The value of a key before and after; None where it had none."""

    old: Any
    new: Any

    def __repr__(self) -> str:
        return "<ValueChange>"


def place_of(error: BaseException) -> str:
    """Return the type of *error* and the line that raised it. Its text may have a value in it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = "" if trace is None else f" at {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
    return type(error).__name__ + where


#: Called with the differences of one event, or of one burst.
BatchListener = Callable[[Mapping[str, ValueChange]], object]


class Listeners:
    """The listeners of a view. Each is called in the view's thread, and its exception is logged and harms no other.

    Threads: any. Without a lock, which a forked child could find held: each step is one operation of a ``dict``.
    """

    def __init__(self) -> None:
        self._listeners: dict[object, BatchListener] = {}
        #: Called when a bad value is the last good one again; it differs from nothing, so no listener is called.
        self.fixed: Callable[[], object] | None = None
        #: Tells whether something else is shown in place of a key's value, so that its differences are not reported.
        self.hidden: Callable[[str], bool] | None = None

    def __bool__(self) -> bool:
        return bool(self._listeners)

    def add(self, listener: BatchListener) -> Callable[[], None]:
        """Call *listener* from now on; return the function that ends it, which may be called twice."""
        mark = object()
        self._listeners[mark] = listener

        def unsubscribe() -> None:
            self._listeners.pop(mark, None)

        return unsubscribe

    def notify_fixed(self) -> None:
        """Call ``fixed``."""
        if self.fixed is not None:
            try:
                self.fixed()
            except BaseException as error:
                log.error("settings raised %s", place_of(error))

    def notify(self, differences: Mapping[str, ValueChange]) -> None:
        """Call every listener with the *differences* that a reader can see."""
        if self.hidden is not None:
            differences = {key: one for key, one in differences.items() if not self.hidden(key)}
        if differences:
            self.announce(differences)

    def announce(self, differences: Mapping[str, ValueChange]) -> None:
        """Call every listener."""
        for mark, listener in list(self._listeners.items()):
            if mark in self._listeners:  # a listener may have ended another one
                try:
                    listener(differences)
                except BaseException as error:
                    log.error("a listener of a view raised %s", place_of(error))


def each_key(function: Callable[[str, Any, Any], object]) -> BatchListener:
    """Return a listener that calls *function* with key, old and new value; one key's exception harms no other."""

    def listener(differences: Mapping[str, ValueChange]) -> None:
        for key, (old, new) in differences.items():
            try:
                function(key, old, new)
            except BaseException as error:
                log.error("a listener of a view raised %s for the key %r", place_of(error), key)

    return listener


class Settling:
    """Gathers differences until nothing came for *window* [0] seconds, or for *window* [1] seconds at most.

    A key that has its first value again is no difference. Threads: the view's.
    """

    def __init__(self, window: tuple[float, float] | None) -> None:
        if window is not None and not 0 <= window[0] <= window[1] < float("inf"):
            raise InvalidArgumentError("settle takes the shortest and the longest wait in seconds")
        self._quiet, self._longest = window or (0.0, 0.0)
        self._gathered: dict[str, ValueChange] = {}
        self._first = self._last = 0.0

    def add(self, differences: Mapping[str, ValueChange]) -> None:
        """Gather *differences*."""
        if not differences:
            return
        self._last = time.monotonic()
        if not self._gathered:
            self._first = self._last
        for key, difference in differences.items():
            earlier = self._gathered.get(key)
            self._gathered[key] = difference if earlier is None else ValueChange(earlier.old, difference.new)

    @property
    def due_at(self) -> float | None:
        """The monotonic time at which ``take`` should be called; None when nothing is gathered."""
        return min(self._last + self._quiet, self._first + self._longest) if self._gathered else None

    def take(self) -> dict[str, ValueChange]:
        """Return what was gathered, and start over."""
        gathered, self._gathered = self._gathered, {}
        return {key: one for key, one in gathered.items() if not same(one.old, one.new)}
