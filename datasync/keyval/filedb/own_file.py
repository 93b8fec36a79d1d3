"""The one file that this library writes: locked, replaced as a whole, and on the disk before a write returns."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import stat
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from datasync.errors import (
    DecodeError,
    InvalidArgumentError,
    PermissionDenied,
    StoreConnectionError,
    StoreError,
    UnknownOutcome,
)
from datasync.keyval.filedb.document import DocumentWriter, read_document
from datasync.runtime.threads import step_of

#: Seconds between two attempts to get the lock.
PAUSE = 0.005


class OwnFile:
    """The filedb file *path*, in JSON. Writers in this and other processes take turns.

    Nobody ever sees a part of a write: the new file is complete on the disk before it takes the place of the old one.

    Threads: any; ``read`` and ``write`` inside of ``locked``.
    """

    def __init__(self, path: str, lock_timeout: float, max_bytes: int) -> None:
        self.path = os.path.realpath(path)
        self._folder, self._name = os.path.split(self.path)
        self._lock_timeout = lock_timeout
        self._max_bytes = max_bytes
        self._writer = DocumentWriter()
        # Held while the file is read and written. It only spares the threads of this process the attempts.
        self._mine = threading.Lock()
        self._tidied = False

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other writers away during the block. A process that is killed lets them in.

        Raises:
          StoreConnectionError: Another writer holds the lock for too long, or the folder is missing.
          PermissionDenied: The folder cannot be written.
        """
        give_up = time.monotonic() + self._lock_timeout
        while not self._mine.acquire(timeout=step_of(max(0.0, give_up - time.monotonic()))):
            if time.monotonic() >= give_up:
                raise self._busy()
        try:
            descriptor = self._open_lock(give_up)
            try:
                yield
            finally:
                os.close(descriptor)
        finally:
            self._mine.release()

    def read(self) -> dict[str, bytes]:
        """Return the pairs of the file; none if there is no file. Raises ``StoreError`` if it cannot be used."""
        try:
            with open(self.path, "rb") as file:
                data = file.read()
            return read_document(data, yaml=not self.path.lower().endswith(".json"))
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise self._failed("read", error) from error
        except DecodeError as error:
            raise StoreError(f"{self.path} cannot be used, and is not written: {error}") from error

    def write(self, pairs: Mapping[str, bytes]) -> bytes:
        """Replace the file by one with *pairs*; return its bytes.

        Raises:
          InvalidArgumentError, StoreError, PermissionDenied: Nothing was written.
          UnknownOutcome: The file was replaced, and a power failure may still bring the old one back.
        """
        data = self._writer.write(pairs)
        if len(data) > self._max_bytes:
            raise InvalidArgumentError(
                f"{self.path} would have {len(data)} bytes, more than the option max_bytes allows ({self._max_bytes})"
            )
        try:
            folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise self._failed("write", error) from error
        try:
            self._tidy(folder)
            self._replace(folder, data)
            try:
                os.fsync(folder)
            except OSError as error:
                raise UnknownOutcome(f"the disk of {self.path} failed: the write may have been applied") from error
        finally:
            os.close(folder)
        return data

    def _replace(self, folder: int, data: bytes) -> None:
        unfinished = f".{self._name}.{os.getpid()}-{random.SystemRandom().getrandbits(48):x}.tmp"
        try:
            descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=folder)
            try:
                with open(descriptor, "wb", buffering=0) as file:
                    self._keep_rights(folder, descriptor)
                    rest = memoryview(data)
                    while rest:
                        rest = rest[file.write(rest) :]
                    os.fsync(descriptor)
                os.replace(unfinished, self._name, src_dir_fd=folder, dst_dir_fd=folder)
            except BaseException:
                with suppress(OSError):
                    os.unlink(unfinished, dir_fd=folder)
                raise
        except OSError as error:
            raise self._failed("write", error) from error

    def _keep_rights(self, folder: int, descriptor: int) -> None:
        """Give the new file the mode and owner of the old one."""
        with suppress(FileNotFoundError):
            old = os.stat(self._name, dir_fd=folder)
            os.fchmod(descriptor, stat.S_IMODE(old.st_mode))
            with suppress(PermissionError):
                os.fchown(descriptor, old.st_uid, old.st_gid)

    def _tidy(self, folder: int) -> None:
        """Remove what writers left behind that were killed. The lock is held: none of them is at work."""
        if not self._tidied:
            for name in os.listdir(folder):
                if name.startswith(f".{self._name}.") and name.endswith(".tmp"):
                    with suppress(OSError):
                        os.unlink(name, dir_fd=folder)
            self._tidied = True

    def _open_lock(self, give_up: float) -> int:
        """Return the descriptor that holds the lock."""
        path = os.path.join(self._folder, f".{self._name}.lock")
        while True:
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except OSError as error:
                raise self._failed("write", error) from error
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                    return descriptor
            except (BlockingIOError, FileNotFoundError):  # somebody else has it, or removed the file
                pass
            except OSError as error:
                os.close(descriptor)
                raise self._failed("lock", error) from error
            os.close(descriptor)
            if time.monotonic() >= give_up:
                raise self._busy()
            threading.Event().wait(PAUSE)

    def _busy(self) -> StoreConnectionError:
        return StoreConnectionError(
            f"another writer has held the lock of {self.path} for {self._lock_timeout:g} s; nothing was written"
        )

    def _failed(self, what: str, error: OSError) -> StoreError:
        text = f"cannot {what} {self.path}: {error.strerror}; nothing was written"
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return PermissionDenied(text)
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE):
            return StoreConnectionError(text)
        return StoreError(text)
