"""A file with the last good values of a view, for a start without the store.

The first line is a JSON object with the format, the source, the prefix, the revision and the checksum of the rest,
which is a JSON object of the keys and their bytes in base64. The file is replaced atomically, and only its owner can
read it. Source: contract C20.
"""

from __future__ import annotations

import json
import os
import stat
from binascii import a2b_base64, b2a_base64, crc32
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from datasync.runtime.logs import get_logger

log = get_logger(__name__)

#: Version of the file format.
FORMAT = 1
#: Bytes of a file that is read: a larger one was named by mistake.
MAX_CACHE = 1024 * 1024 * 1024


class CachedValues(NamedTuple):
    """The content of a cache file: the bytes of each key, and the revision of the source that they are from."""

    values: dict[str, bytes]
    revision: int

    def __repr__(self) -> str:
        return f"CachedValues(<{len(self.values)} values>, revision={self.revision})"


class _UnusableFileError(Exception):
    """Why a file is ignored."""


class CacheFile:
    """The cache file *path* of what is under *prefix* of *source*. Threads: one at a time; processes: any.

    Args:
      source: The store, without a password; a file of another one is ignored.
    """

    def __init__(self, path: str | os.PathLike[str], source: str, prefix: str) -> None:
        self.path = os.path.abspath(path)
        self._source = source
        self._prefix = prefix
        self._failed = False

    def load(self) -> CachedValues | None:
        """Return the content; None without a file. A damaged or foreign one is ignored with a WARNING."""
        try:
            with open(self.path, "rb") as file:
                _check_owner(os.fstat(file.fileno()))
                header_line = file.readline(64 * 1024)
                body = file.read(MAX_CACHE + 1)
            header = self._header(header_line)
            if len(body) > MAX_CACHE or crc32(body) != header["crc32"]:
                raise _UnusableFileError("it is damaged: the checksum differs")
            values = {str(key): a2b_base64(text) for key, text in json.loads(body).items()}
            return CachedValues(values, int(header["revision"]))
        except FileNotFoundError:
            return None
        except OSError as error:
            problem = error.strerror or type(error).__name__
        except _UnusableFileError as error:
            problem = str(error)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            problem = "it is damaged"
        log.warning("the cache file %s is ignored: %s", self.path, problem)
        return None

    def save(self, content: CachedValues) -> bool:
        """Replace the file; False if that failed, which a WARNING says once. An equal file is left as it is."""
        encoded = {key: b2a_base64(data, newline=False).decode() for key, data in sorted(content.values.items())}
        body = json.dumps(encoded, separators=(",", ":")).encode()
        header = {
            "datasync_cache": FORMAT,
            "source": self._source,
            "prefix": self._prefix,
            "revision": content.revision,
            "crc32": crc32(body),
        }
        line = json.dumps(header).encode() + b"\n"
        try:
            if not self._begins_with(line):
                self._replace(line + body)
        except OSError as error:
            if not self._failed:
                log.warning("the cache file %s cannot be written: %s", self.path, error.strerror)
            self._failed = True
            return False
        self._failed = False
        return True

    def _header(self, line: bytes) -> Mapping[str, Any]:
        header = json.loads(line)
        if not isinstance(header, dict) or header.get("datasync_cache") != FORMAT:
            raise _UnusableFileError("it is not a cache file of this version")
        if header["source"] != self._source or header["prefix"] != self._prefix:
            raise _UnusableFileError("it is of another store or prefix")
        return header

    def _begins_with(self, line: bytes) -> bool:
        """Return True if another process has written the same content."""
        try:
            with open(self.path, "rb") as file:
                return file.read(len(line)) == line
        except FileNotFoundError:
            return False

    def _replace(self, data: bytes) -> None:
        folder, name = os.path.split(self.path)
        draft = os.path.join(folder, f".{name}.{os.getpid()}")
        with suppress(FileNotFoundError):
            os.unlink(draft)  # of a process with our id that was killed
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(descriptor)  # or a power loss may leave the new name with old blocks
            os.replace(draft, self.path)
        except BaseException:
            with suppress(OSError):
                os.unlink(draft)
            raise


def _check_owner(status: os.stat_result) -> None:
    """Raise unless only this user, or root, can have written the file: others must not choose our values."""
    if not stat.S_ISREG(status.st_mode):
        raise _UnusableFileError("it is not a file")
    if status.st_mode & 0o022 or status.st_uid not in (0, os.geteuid()):
        raise _UnusableFileError("other users can write it")
