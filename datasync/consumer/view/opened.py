"""Views that open their store themselves, at first use in each process.

A forked child has the parent's objects but none of its threads. What a module opens at its import, before a server
forks its workers, would be dead in all of them. These views open nothing before the first read, and again in a child.

Source: contract C15, C20.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Mapping
from queue import Queue
from typing import TYPE_CHECKING, Any, TypeVar, overload

from datasync.codecs.api import Codec
from datasync.consumer.pairs import JSON
from datasync.consumer.view.cache import CacheFile
from datasync.consumer.view.index import IndexFunction
from datasync.consumer.view.live import Attached, LiveValues, ViewOptions
from datasync.consumer.view.notices import Listeners
from datasync.consumer.view.view import View
from datasync.errors import ClosedError, InvalidArgumentError, UnsupportedError

if TYPE_CHECKING:
    from datasync.consumer.view.settings import Settings

T = TypeVar("T")

#: Seconds for which the first read waits for the store.
WAIT = 1.0

# Held while this module imports the transport and the driver, and while a process opens a view; and by a thread that
# forks. So no child gets a half-imported module, whose lock nobody would ever release there. Never held while waiting.
_lock = threading.RLock()
_held = False
#: What a forked child inherited: its finalizers must not run, because they would touch the parent's connections.
_inherited: list[object] = []


def _hold() -> None:
    global _held
    _lock.acquire()
    _held = True


def _release_in_parent() -> None:
    global _held
    if _held:  # not when another thread imported this module in the middle of the fork
        _held = False
        _lock.release()


def _release_in_child() -> None:
    global _held, _lock
    _held, _lock = False, threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_hold, after_in_parent=_release_in_parent, after_in_child=_release_in_child)


class OpenedView(View[T]):
    """The view that ``open_view`` returns. Threads and processes: any."""

    def __init__(self, url: str, prefix: str, wait: float, options: ViewOptions, store_options: dict[str, Any]) -> None:
        if not isinstance(prefix, str):
            raise InvalidArgumentError(f"a prefix must be a string, not {type(prefix).__name__}")
        if not 0 <= wait < float("inf"):
            raise InvalidArgumentError("wait takes a number of seconds, at least 0")
        self._listeners = Listeners()
        self._indexes: dict[str, IndexFunction] = {}
        self._options = options
        self._wait = wait
        self._name = prefix or "view"  # a process may have several: its log, probes and metrics name them
        self._closed = False
        #: The process that ``_live`` was opened in, and the one in which it is ready to be read.
        self._opened_in = self._ready_in = 0
        with _lock:
            self._connect = _connector(url, prefix, self._name, store_options)
        self._enter(None)

    def leave_parent(self) -> None:
        self._enter(None)
        live = getattr(self, "_live", None)
        if live is not None and self._opened_in:
            _inherited.append(live)
        self._opened_in = self._ready_in = 0

    def here(self) -> LiveValues[T]:
        return self._live if self._ready_in == _process() else self._open()

    def _open(self) -> LiveValues[T]:
        process = _process()
        with _lock:
            if self._opened_in != process:
                if self._closed:
                    raise ClosedError("the view is closed")
                _check_threads()
                self.leave_parent()
                self._live = self._started()
                self._opened_in = process
            live = self._live
        if not live.started.wait(self._wait):
            cache = self._options.cache
            live.start_from(None if cache is None else cache.load())
        if process < 0:
            live.close()  # uWSGI forks without a word, and a thread may hold the interpreter then
        self._ready_in = process
        if "uwsgi" not in sys.modules:  # which may fork without telling Python: each read compares the process there
            self._enter(live.values)
        return live

    def _started(self) -> LiveValues[T]:
        queue: Queue[Any] = Queue()
        live: LiveValues[T] = LiveValues(self._name, self._options, queue, self._listeners, self._indexes)
        live.start(lambda: self._connect(queue))
        return live

    def index(self, name: str, function: IndexFunction) -> None:
        with _lock:  # a process that opens meanwhile either finds it, or is opened already
            self._indexes = {**self._indexes, name: function}
            opened = self._opened_in == _process()
        if opened:
            self._live.table.add_index(name, function)

    def close(self) -> None:
        self._closed = True
        if self._opened_in == _process():
            self._live.close()

    def __enter__(self) -> OpenedView[T]:
        self.here()
        return self


@overload
def open_view(
    url: str,
    prefix: str = ...,
    *,
    cache: str | os.PathLike[str] | None = ...,
    defaults: Mapping[str, Any] | None = ...,
    max_stale: float | None = ...,
    wait: float = ...,
    settle: tuple[float, float] | None = ...,
    max_delete: int | float | None = ...,
    **options: Any,
) -> View[Any]: ...
@overload
def open_view(
    url: str,
    prefix: str,
    codec: Codec[T],
    *,
    cache: str | os.PathLike[str] | None = ...,
    defaults: Mapping[str, T] | None = ...,
    max_stale: float | None = ...,
    wait: float = ...,
    settle: tuple[float, float] | None = ...,
    max_delete: int | float | None = ...,
    **options: Any,
) -> View[T]: ...
def open_view(
    url: str,
    prefix: str = "",
    codec: Codec[Any] = JSON,
    *,
    cache: str | os.PathLike[str] | None = None,
    defaults: Mapping[str, Any] | None = None,
    max_stale: float | None = None,
    wait: float = WAIT,
    settle: tuple[float, float] | None = None,
    max_delete: int | float | None = None,
    **options: Any,
) -> View[Any]:
    """Return a live mapping of what is under *prefix* of the store at *url*, with keys relative to *prefix*.

    Nothing is opened before the first read, ``wait_synced``, ``put`` or ``with`` in each process, so that a module may
    call this at its import, whatever forks later. ``on_change`` and ``index`` alone open nothing.

    Args:
      url: As for :func:`datasync.keyval.urls.connect`.
      codec: Encodes and decodes the values; strict JSON by default.
      cache: A file for the last good values. It serves a start without the store.
      defaults: Values of keys that the store does not have.
      max_stale: Seconds for which the store may be lost before the state is STALE; 0 by default.
      wait: Seconds for which the first read in a process waits for the store. After them the values are those of the
        cache file and the defaults, and the store is opened in the background, with retries for ever.
      settle: Shortest and longest seconds for which changes are gathered before listeners are called.
      max_delete: The most deletes of one RESYNC, a number of keys or a share of them from 0.0 to 1.0; more are held.
      options: Options of the driver.

    Raises:
      InvalidArgumentError: The URL or an option is invalid.
      MissingExtraError: The driver's client library is not installed.

    Threads and processes: any.
    Source: contract C20.
    """
    with _lock:
        from datasync.keyval.urls import parse_url

        parsed = parse_url(url)
    hosts = ",".join(host if port is None else f"{host}:{port}" for host, port in parsed.hosts)
    source = f"{parsed.scheme}://{hosts}{parsed.path}"  # without what may be a password
    file = None if cache is None else CacheFile(cache, source, prefix)
    view_options = ViewOptions(codec, defaults or {}, file, max_stale, settle, max_delete).checked()
    return OpenedView(url, prefix, wait, view_options, options)


def open_settings(
    url: str,
    prefix: str,
    model: type[T],
    *,
    cache: str | os.PathLike[str] | None = None,
    max_stale: float | None = None,
    wait: float = WAIT,
    settle: tuple[float, float] | None = None,
    max_delete: int | float | None = None,
    **options: Any,
) -> Settings[T]:
    """Return the keys under *prefix* as one object of *model*, a dataclass or a pydantic model.

    Each field is the JSON value of the key of its name. The other arguments are those of :func:`open_view`, and like
    there nothing is opened before the first use in each process.

    Raises:
      InvalidArgumentError: The URL, an option or *model* is invalid.
      MissingExtraError: The driver's client library is not installed.

    Threads and processes: any.
    Source: contract C20.
    """
    view = open_view(
        url, prefix, cache=cache, max_stale=max_stale, wait=wait, settle=settle, max_delete=max_delete, **options
    )
    with _lock:
        from datasync.consumer.view.settings import Settings
    return Settings(view, model)


def _connector(url: str, prefix: str, name: str, options: dict[str, Any]) -> Callable[[Any], Attached]:
    """Import what opening needs, check the arguments, and return the function that opens and subscribes a queue."""
    from datasync.keyval.urls import prepare
    from datasync.kvdbsync.plugin import Plugin

    connect = prepare(url, **options)

    def attach(queue: Any) -> Attached:
        store = connect()
        try:
            plugin = Plugin(store, prefix, allow_delayed_start=True)
            try:
                registration = plugin.watch(name, queue, queue, "")
                plugin.after_init()
            except BaseException:
                plugin.close()
                raise
        except BaseException:
            store.close()
            raise
        return Attached(plugin, (registration, plugin, store))

    return attach


def _process() -> int:
    """Return a number for this process; a negative one for that of uWSGI that will fork, or become a worker itself."""
    uwsgi = sys.modules.get("uwsgi")
    process = os.getpid()
    if uwsgi is not None and hasattr(uwsgi, "worker_id"):
        return -process if not uwsgi.worker_id() and uwsgi.masterpid() in (0, process) else process
    return process


def _check_threads() -> None:
    """Raise in a uWSGI process that would never run a thread: its values would never change."""
    options = getattr(sys.modules.get("uwsgi"), "opt", None)
    if isinstance(options, Mapping):
        names = {name.decode() if isinstance(name, bytes) else str(name) for name in options}
        if not names & {"enable-threads", "threads"}:
            raise UnsupportedError("uWSGI runs no Python threads here: start it with --enable-threads")
