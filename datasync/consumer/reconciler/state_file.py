"""A file that says what was applied, for the next start of the program.

The first line names the owner. Each other line has a checksum, a digest and a key, and the last line of a key counts:
``?`` while a call runs, so that a process that is killed in the middle knows the key and calls again, and ``-`` once
the key is deleted. Lines are appended as they come; when most of them are outdated, a new file replaces the old one.

Source: contract C20.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from datasync.errors import InvalidArgumentError
from datasync.runtime.logs import get_logger
from datasync.runtime.wording import counted

log = get_logger(__name__)

#: First word of the file, with the version of its form.
MAGIC = "datasync-state-1"
UNKNOWN, DELETED = "?", "-"
#: Outdated lines that a file may have beside as many as it has keys.
SPARE_LINES = 1000


def digest(data: bytes) -> str:
    """Return the digest of a value."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


class StateFile:
    """The digests of what was applied, by key, in the file *path*, which only its owner may read.

    A file that is damaged, or that belongs to another name or other prefixes, is ignored with a WARNING, and replaced.
    A write that fails is logged once; what was applied meanwhile is applied again after a restart.

    Raises:
      InvalidArgumentError: The file cannot be read or written.

    Threads: any. One process at a time may use a file.
    """

    def __init__(self, path: str | Path, owner: str, prefixes: Iterable[str]) -> None:
        self._path = Path(path)
        self._header = f"{MAGIC} {json.dumps([owner, sorted(prefixes)])}"
        self._lock = threading.Lock()  # guards all below
        self._digests: dict[str, str] = {}
        self._doubts: set[str] = set()
        self._lines = 0
        self._file: int | None = None
        self._failed = False
        try:
            self._digests = self._read()
            self._replace()
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not a valid path"
            raise InvalidArgumentError(f"cannot use the state file {self._path}: {reason}") from error

    @property
    def digests(self) -> Mapping[str, str]:
        """A copy of the digests; ``?`` where a call was not completed."""
        with self._lock:
            return dict(self._digests)

    def begin(self, key: str) -> None:
        """Note that a call of *key* begins, which also answers a doubt."""
        with self._lock:
            self._doubts.discard(key)
            self._note_locked(key, UNKNOWN)

    def doubt(self, key: str) -> None:
        """Note that *key* must be called again: what a call that has begun before ends with does not count."""
        with self._lock:
            self._note_locked(key, UNKNOWN)
            self._doubts.add(key)

    def note(self, key: str, value: str) -> None:
        """Note the digest *value* of *key*, or ``DELETED``; without effect while *key* is in doubt."""
        with self._lock:
            if key not in self._doubts:
                self._note_locked(key, value)

    def _note_locked(self, key: str, value: str) -> None:
        if self._digests.get(key, DELETED) == value:
            return
        if value == DELETED:
            del self._digests[key]
        else:
            self._digests[key] = value
        try:
            self._append(_line(key, value))
        except OSError as error:
            self._warn(error)

    def close(self) -> None:
        """Close the file; a later ``note`` opens it again. May be called twice."""
        with self._lock:
            self._close()

    def _append(self, line: bytes) -> None:
        self._lines += 1
        if self._failed or self._lines > 2 * len(self._digests) + SPARE_LINES:
            self._replace()
            return
        if self._file is None:
            self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        if os.write(self._file, line) != len(line):  # the disk is full: the torn line must not stay before others
            self._replace()

    def _replace(self) -> None:
        """Write a new file and put it in the place of the old one, all or nothing."""
        body = b"".join([f"{self._header}\n".encode(), *(_line(*item) for item in self._digests.items())])
        temporary = self._path.with_name(f"{self._path.name}.{os.getpid()}.new")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        try:
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(handle, "wb") as file:
                file.write(body)
                file.flush()
                os.fsync(handle)
            os.replace(temporary, self._path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        self._close()
        self._lines = len(self._digests)
        if self._failed:
            self._failed = False
            log.info("the state file %s can be written again", self._path)

    def _close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _warn(self, error: OSError) -> None:
        if not self._failed:
            log.warning("cannot write the state file %s: %s", self._path, error.strerror)
        self._failed = True

    def _read(self) -> dict[str, str]:
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return {}
        *lines, torn = content.split(b"\n")  # a line without its end was being written when the process was killed
        if not lines and not torn:
            return {}
        if not lines or lines[0] != self._header.encode():
            log.warning("the state file %s is ignored: it is not one of this name and these prefixes", self._path)
            return {}
        digests: dict[str, str] = {}
        for number, line in enumerate(lines[1:], 2):
            try:
                key, value = _parse(line)
            except ValueError:
                log.warning("the state file %s is ignored: line %d is damaged", self._path, number)
                return {}
            if value == DELETED:
                digests.pop(key, None)
            else:
                digests[key] = value
        log.info("the state file %s has %s", self._path, counted(len(digests), "key"))
        return digests


def _line(key: str, value: str) -> bytes:
    body = f"{value} {json.dumps(key)}".encode()
    return b"%08x %b\n" % (zlib.crc32(body), body)


def _parse(line: bytes) -> tuple[str, str]:
    """Return key and digest of a line; raise ``ValueError`` when it is damaged."""
    checksum, _, body = line.partition(b" ")
    if int(checksum, 16) != zlib.crc32(body):
        raise ValueError("wrong checksum")
    value, _, key = body.decode().partition(" ")
    return str(json.loads(key)), value
