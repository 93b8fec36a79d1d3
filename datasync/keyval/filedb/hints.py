"""Hints that something in a folder may have changed, by inotify. They may be late, lost or wrong: a look decides.

Own code instead of the library watchdog, whose threads have no end of their own, and whose current version shares one
inotify instance with every forked child. A hint needs no more than that some event came.

Source: contract C15; inotify(7).
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import socket
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from datasync.runtime.logs import get_logger
from datasync.runtime.threads import Worker

log = get_logger(__name__)

_MODIFY, _ATTRIB, _CLOSE_WRITE, _MOVED, _CREATE, _DELETE = 0x2, 0x4, 0x8, 0xC0, 0x100, 0x200
_DELETE_SELF, _MOVE_SELF, _ONLYDIR = 0x400, 0x800, 0x01000000
#: The events that may mean a change. Those of reading are left out: a look would cause the next one.
_CHANGES = _MODIFY | _ATTRIB | _CLOSE_WRITE | _MOVED | _CREATE | _DELETE | _DELETE_SELF | _MOVE_SELF | _ONLYDIR
#: Bytes of events that are dropped at once.
_BUFFER = 64 * 1024


class Hints:
    """Calls *hint* soon after something in the watched folders may have changed.

    Folders that are deleted and made again must be named again. Where there is no inotify, or its limits are reached,
    ``alive`` is False, and no hint comes.

    Threads: ``watch`` one at a time, ``close`` any; *hint* is called by the thread of the watch.
    """

    def __init__(self, hint: Callable[[], object], name: str) -> None:
        self._hint = hint
        self._name = name
        self._inotify = -1
        # Sockets, because a number may belong to another file by the time somebody wakes a thread that has ended.
        self._receiver: socket.socket | None = None
        self._sender: socket.socket | None = None
        self._worker: Worker | None = None
        self._warned = False
        #: True if changes in all folders of the last ``watch`` give a hint.
        self.alive = False

    def watch(self, folders: Iterable[str]) -> None:
        """Watch *folders*; those that are watched already go on. What cannot be watched makes ``alive`` False."""
        if _LIBC is None:
            return
        try:
            if self._worker is None:
                self._start()
            for folder in folders:
                if _LIBC.inotify_add_watch(self._inotify, os.fsencode(folder), _CHANGES) < 0:
                    number = ctypes.get_errno()
                    raise OSError(number, os.strerror(number), folder)
            self.alive = True
        except FileNotFoundError:  # gone since it was found: the next look names others
            self.alive = False
        except (OSError, RuntimeError) as error:  # the limits of inotify, or of threads
            self.alive = False
            if not self._warned and getattr(error, "errno", 0) != errno.EBADF:  # EBADF: closed meanwhile
                log.warning("%s is only polled for changes: no inotify watch: %s", self._name, error)
            self._warned = True

    def close(self) -> None:
        """End the watch and its thread. May be called twice."""
        self.alive = False
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.close()

    def _start(self) -> None:
        inotify = _LIBC.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        if inotify < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        self._inotify = inotify
        self._receiver, self._sender = socket.socketpair()
        worker = Worker("keyval-file-hints", self._run, wake=self._wake)
        try:
            worker.start()
        except BaseException:
            self._release()
            raise
        self._worker = worker

    def _run(self, worker: Worker) -> None:
        try:
            waiting = select.poll()
            assert self._receiver is not None
            for descriptor in (self._inotify, self._receiver.fileno()):
                waiting.register(descriptor, select.POLLIN)
            while not worker.stopping.is_set():
                waiting.poll()
                with suppress(BlockingIOError):
                    while os.read(self._inotify, _BUFFER):
                        pass
                self._hint()
        finally:
            self._release()

    def _wake(self) -> None:
        sender = self._sender
        if sender is not None:
            with suppress(OSError):  # the thread has ended
                sender.send(b"x")

    def _release(self) -> None:
        self.alive = False
        inotify, ends = self._inotify, (self._receiver, self._sender)
        self._inotify, self._receiver, self._sender = -1, None, None
        os.close(inotify)
        for end in ends:
            if end is not None:
                end.close()


def _libc() -> Any:
    """Return the C library, None if it has no inotify."""
    with suppress(OSError, TypeError):
        library = ctypes.CDLL(None, use_errno=True)
        if hasattr(library, "inotify_init1"):
            return library
    return None


_LIBC = _libc()
