"""Other values for a view or for settings, during a test.

Source: contract C20.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, TypeVar

from datasync.consumer.view.frozen import freeze
from datasync.consumer.view.overlay import ABSENT
from datasync.consumer.view.settings import Settings
from datasync.consumer.view.view import View
from datasync.errors import InvalidArgumentError

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


class override:  # used like a function
    """Shows other values of *target* while a block or a decorated function runs: ``override(flags, checkout=True)``.

    Every thread sees them, as do the request threads of a web server in the test. Overrides may be nested, and end in
    any order; the newest one of a key counts. Nothing is written to the source, and all other keys stay live.
    Listeners are called in this thread with what changes for them, at the beginning and at the end.

    Args:
      target: A view or settings.
      values: Values by key; needed for keys that are not Python names. ``ABSENT`` as a value removes the key.
      named: Values by key.

    Raises:
      InvalidArgumentError: *target* is something else; the codec of the view cannot encode a value; the settings have
        no such field, or cannot be made with the value. Nothing is overridden then.

    Threads: any. One object may be used several times, also at once.
    Source: contract C20.
    """

    def __init__(
        self, target: View[Any] | Settings[Any], values: Mapping[str, Any] | None = None, /, **named: Any
    ) -> None:
        self._settings = target if isinstance(target, Settings) else None
        view = target.view if isinstance(target, Settings) else target
        if not isinstance(view, View):
            raise InvalidArgumentError(f"only a view or settings can be overridden, not a {type(target).__name__}")
        wanted = {**(values or {}), **named}
        if self._settings is not None and (unknown := wanted.keys() - self._settings.names):
            raise InvalidArgumentError(f"the settings have no field {', '.join(map(repr, sorted(unknown)))}")
        self._view = view
        self._values = {key: _as_read(view, key, value) for key, value in wanted.items()}
        self._marks: dict[int, list[object]] = {}  # of the blocks that run, by thread: each ends its own

    def __enter__(self) -> None:
        # Before it is shown: no other thread may see an invalid object, or be told of its problem.
        problem = None if self._settings is None else self._settings.problem_with(self._values)
        if problem is not None:
            raise InvalidArgumentError(f"the overridden settings are not valid: {problem}")
        mark = object()
        self._view.override(mark, self._values)
        self._marks.setdefault(threading.get_ident(), []).append(mark)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        thread = threading.get_ident()
        if thread not in self._marks:  # the block began in another thread
            thread = next(iter(self._marks))
        marks = self._marks[thread]
        mark = marks.pop()
        if not marks:
            del self._marks[thread]
        self._view.override(mark, None)

    def __call__(self, function: FunctionT) -> FunctionT:
        if isinstance(function, type):
            raise InvalidArgumentError("a class cannot be decorated: use the marker datasync_override of pytest")
        if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
            raise InvalidArgumentError("a coroutine or generator cannot be decorated: use a with block inside of it")

        @functools.wraps(function)
        def overridden(*args: Any, **kwargs: Any) -> Any:
            with self:
                return function(*args, **kwargs)

        return overridden  # type: ignore[return-value]


def _as_read(view: View[Any], key: str, value: Any) -> Any:
    """Return *value* as the view would read it from a source."""
    if not isinstance(key, str):
        raise InvalidArgumentError(f"a key must be a string, not {type(key).__name__}")
    if value is ABSENT:
        return value
    try:
        return freeze(view.codec.decode(view.codec.encode(value)))
    except Exception as error:
        raise InvalidArgumentError(f"{key!r} cannot be overridden: {error}") from error
