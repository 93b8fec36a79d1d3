"""A folder of files that is replaced as a whole: readers see the old files or the new ones, never some of each.

The path that readers use is a symlink to a version. A new version is written beside it, and one rename of the symlink
puts it in place. The version before stays until the next one, for readers that are in the middle of it.

Only what bears our own name is ever replaced or removed: ``.NAME.datasync-`` and what ``mkdtemp`` adds.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from datasync.errors import InvalidArgumentError
from datasync.runtime.closing import Closable
from datasync.runtime.logs import get_logger

log = get_logger(__name__)

#: Bytes that a name may have in the usual file systems.
MAX_NAME = 255


class SwappedFolder(Closable):
    """The symlink *path* and its versions, which only their owner can read. One object at a time may own a path.

    Raises:
      InvalidArgumentError: *path* is something else than a symlink of an earlier run, another process owns it, or its
        parent folder does not exist or cannot be written.

    Threads: one at a time.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        #: The symlink, absolute.
        self.path = Path(os.path.abspath(path))
        self._mark = f".{self.path.name}.datasync-"
        # Of a folder of ours; the second group is in the name of one with the keys for a renderer.
        self._ours = re.compile(re.escape(self._mark) + r"[a-z0-9_]{8}(\.keys)?")
        self._previous: Path | None = None
        if os.path.lexists(self.path) and self._current() is None:
            raise InvalidArgumentError(
                f"{self.path} is not a symlink of an earlier run: name a path that does not exist yet"
            )
        try:
            # The kernel releases it when the process ends, however that happens.
            self._lock = os.open(self.path.parent / f"{self._mark}lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise InvalidArgumentError(f"cannot write files beside {self.path}: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._remove_leftovers()
        except OSError as error:
            os.close(self._lock)
            if isinstance(error, BlockingIOError):
                raise InvalidArgumentError(f"{self.path} is written by another process: choose another path") from error
            raise

    def draft(self, suffix: str = "") -> Path:
        """Return a new, empty folder beside the path, for :meth:`publish` or :meth:`discard`."""
        return Path(tempfile.mkdtemp(prefix=self._mark, suffix=suffix, dir=self.path.parent))

    def discard(self, draft: Path) -> None:
        """Remove a folder that :meth:`draft` returned, unless readers see it: an error came after it was published."""
        if draft != self._current():
            shutil.rmtree(draft, ignore_errors=True)

    def publish(self, draft: Path) -> None:
        """Make *draft* what readers see, and durable before that.

        Raises:
          OSError: It could not be done; readers see what they saw.
        """
        sync_tree(draft)
        current = self._current()
        link = self.path.parent / f"{self._mark}link"
        with suppress(FileNotFoundError):
            os.unlink(link)
        os.symlink(draft.name, link)  # relative, so that the parent folder can be mounted elsewhere
        os.replace(link, self.path)
        _sync(self.path.parent)
        if self._previous is not None and self._previous != current:
            self.discard(self._previous)
        self._previous = current

    def close(self) -> None:
        """Let another process own the path; the files stay. May be called twice."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _current(self) -> Path | None:
        """Return the version that the symlink names, if it is one of ours."""
        try:
            target = os.readlink(self.path)
        except OSError:
            return None
        return self.path.parent / target if self._ours.fullmatch(target) else None

    def _remove_leftovers(self) -> None:
        """Remove drafts and older versions of a process that was killed."""
        current = self._current()
        for entry in os.scandir(self.path.parent):
            path = self.path.parent / entry.name
            if self._ours.fullmatch(entry.name) and path != current and entry.is_dir(follow_symlinks=False):
                self.discard(path)


def write_files(folder: Path, values: Mapping[str, bytes]) -> None:
    """Write a file for each key below the empty *folder*; a slash in a key separates folders.

    A key that cannot be a path below the folder is left out, with a WARNING.

    Raises:
      InvalidArgumentError: A key would be both a file and a folder.
      OSError: A file could not be written.
    """
    for key, data in sorted(values.items()):
        parts = key.strip("/").split("/")
        if not all(_is_name(part) for part in parts):
            log.warning("the key %r is left out: it cannot be the name of a file", key)
            continue
        path = folder.joinpath(*parts)
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            raise InvalidArgumentError(f"the key {key!r} needs a path that another key takes as a file") from None
        with open(descriptor, "wb") as file:
            file.write(data)


def sync_tree(folder: Path) -> None:
    """Have the system write *folder* and all below it, or a power loss could leave new names with old blocks."""
    for base, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(base, name)
            if os.path.isfile(path) and not os.path.islink(path):
                _sync(path)
        _sync(base)


def _is_name(part: str) -> bool:
    return part not in ("", ".", "..") and "\0" not in part and len(os.fsencode(part)) <= MAX_NAME


def _sync(path: str | os.PathLike[str]) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
