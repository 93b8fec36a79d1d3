"""One walk of a folder: every file that counts, as of one moment.

A mounted ConfigMap is a folder of links into ``..data``, which is itself a link that is swapped for a new version. It
is followed once for each walk, so that no walk sees two versions.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from datasync.errors import PermissionDenied, StoreConnectionError, StoreError

#: The link of a mounted ConfigMap or Secret to its current version.
DATA_LINK = "..data"
#: The name, in ``Walk.versions``, of a root that is a link itself: everything below it changes when the link does.
ROOT_LINK = "/"
#: Endings of names that editors and writers give to files that are not finished.
UNFINISHED = ("~", ".tmp", ".swp", ".swx", ".part", ".bak")
#: Folders inside one another.
MAX_DEPTH = 64


class Signature(NamedTuple):
    """The state of a file; it changes with every write."""

    device: int
    inode: int
    size: int
    modified: int
    changed: int

    @classmethod
    def of(cls, found: os.stat_result) -> Signature:
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


class FoundFile(NamedTuple):
    """A file: where to open it, and True in *swapped* if it only changes together with its whole folder."""

    path: str
    signature: Signature
    swapped: bool


@dataclass(slots=True)
class Walk:
    """The result of a walk. All names are relative to the root, with ``/`` between them."""

    files: dict[str, FoundFile] = field(default_factory=dict)
    #: Folder or file that could not be read, and why. What was known of the files below stays.
    problems: dict[str, StoreError] = field(default_factory=dict)
    #: Folder to where its ``..data`` led: the path of the link, and the version.
    versions: dict[str, tuple[str, str]] = field(default_factory=dict)
    #: The folders where a change may be seen.
    folders: list[str] = field(default_factory=list)

    @property
    def outdated(self) -> bool:
        """True if a ``..data`` leads elsewhere by now."""
        return any(_target(link) != target for link, target in self.versions.values())


def walk(root: str, accepts: Callable[[str], bool]) -> Walk:
    """Return the files below the folder *root* whose name *accepts*.

    Raises:
      StoreConnectionError, PermissionDenied: The folder is missing, or cannot be listed.
    """
    found = Walk()
    try:
        real = os.path.realpath(root, strict=True)
        version = _target(root)
        if version:  # it may be made to lead elsewhere
            found.folders.append(os.path.dirname(root))
        _visit(found, real, "", accepts, ())
        if version:
            found.versions[ROOT_LINK] = (root, version)
        if os.path.basename(root) == DATA_LINK:
            found.files = {name: file._replace(swapped=True) for name, file in found.files.items()}
    except OSError as error:
        raise unreadable(root, error) from error
    return found


def is_passed_over(name: str) -> bool:
    """Return True for hidden and unfinished files and folders."""
    return name.startswith((".", "#")) or name.endswith(UNFINISHED)


def unreadable(path: str, error: OSError) -> StoreError:
    """Return the error that says that *path* cannot be read."""
    text = f"cannot read {path}: {error.strerror or type(error).__name__}"
    if isinstance(error, PermissionError):
        return PermissionDenied(f"{text}; give this process the right to read it")
    return StoreConnectionError(text)


def _visit(
    found: Walk, folder: str, name: str, accepts: Callable[[str], bool], above: tuple[tuple[int, int], ...]
) -> None:
    here = os.stat(folder)
    if (here.st_dev, here.st_ino) in above or len(above) > MAX_DEPTH:
        return  # a link that leads upwards
    above = (*above, (here.st_dev, here.st_ino))
    found.folders.append(folder)
    link = os.path.join(folder, DATA_LINK)
    version = _target(link)
    if version:
        found.versions[name] = (link, version)
    prefix = f"{name}/" if name else ""
    with os.scandir(folder) as entries:
        listed = list(entries)
    for entry in listed:
        if is_passed_over(entry.name):
            continue
        full, path, swapped = prefix + entry.name, entry.path, False
        try:
            if version and entry.is_symlink() and _target(path).startswith(f"{DATA_LINK}/"):
                swapped, path = True, os.path.join(folder, version, _target(path)[len(DATA_LINK) + 1 :])
                status = os.stat(path)
            else:
                status = entry.stat()
            if stat.S_ISDIR(status.st_mode):
                _visit(found, path, full, accepts, above)
            elif accepts(entry.name):
                if not stat.S_ISREG(status.st_mode):
                    raise OSError(0, "it is not a regular file")
                if not full.isascii():
                    full.encode()
                found.files[full] = FoundFile(path, Signature.of(status), swapped)
        except FileNotFoundError:
            continue  # gone since it was listed, or a link that leads nowhere
        except UnicodeEncodeError:
            found.problems[full] = StoreError(f"{path!r}: the name is not valid UTF-8; rename it")
        except OSError as error:
            found.problems[full] = unreadable(path, error)


def _target(link: str) -> str:
    """Return where *link* leads, "" if it is not a link."""
    try:
        return os.readlink(link)
    except OSError:
        return ""
