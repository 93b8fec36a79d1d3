"""A folder with one file for each key: the segments of the key are folders, the file has the bytes of the value.

What a file system does not take is percent-encoded, so that every key has one file and the way back is exact: a first
dot (hidden files, ``.`` and ``..``), and every byte but ASCII letters, digits and ``_ @ = + , ~ . -``. An empty segment
is ``%2F``, which no other segment can be. A file whose key is also the beginning of others, as ``a`` and ``a/b``, has a
``%`` at the end of its name.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import unquote_to_bytes

from datasync.errors import InvalidArgumentError
from datasync.tools.records import RecordPair, key_bytes, key_text

#: Bytes of a file's name that common file systems take.
MAX_NAME = 255
#: The name of an empty segment, and the end of the name of a file beside a folder of its name.
EMPTY, BESIDE = "%2F", "%"

_SPECIAL = re.compile(rb"^\.|[^A-Za-z0-9_@=+,~.-]")
_NAME = re.compile(r"(?:[A-Za-z0-9_@=+,~-]|%[0-9A-F]{2})(?:[A-Za-z0-9_@=+,~.-]|%[0-9A-F]{2})*%?")


def write_folder(pairs: Iterable[RecordPair], folder: Path) -> int:
    """Write *pairs* into the new or empty *folder*, all or nothing, and return their number.

    Raises:
      InvalidArgumentError: The folder has files, or a key is too long for a file's name.
      OSError: A file cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InvalidArgumentError(f"{folder} is not an empty folder: name a new one")
    folder.parent.mkdir(parents=True, exist_ok=True)
    written = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        count = 0
        for key, value in pairs:
            path = written / path_of(key)
            _make_folder(path.parent, written)
            if path.is_dir():
                path = path.with_name(path.name + BESIDE)
            path.write_bytes(value)
            count += 1
        if folder.exists():
            folder.rmdir()
        written.chmod(0o777 & ~_umask())  # mkdtemp keeps it private
        written.rename(folder)
        return count
    except BaseException:
        shutil.rmtree(written, ignore_errors=True)
        raise


def read_folder(folder: Path) -> Iterator[RecordPair]:
    """Yield the pairs in *folder*, in key order. Files that ``write_folder`` would not name so are an error.

    Hidden files are left out, so that the folder may be a Git checkout.

    Raises:
      InvalidArgumentError: A file's name stands for no key.
    """
    paths: list[tuple[bytes, Path]] = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith("."):
                path = Path(place, name)
                paths.append((key_bytes(key_of(path.relative_to(folder))), path))
    for key, path in sorted(paths):
        yield RecordPair(key_text(key), path.read_bytes())


def path_of(key: str) -> Path:
    """Return the relative path of the file of *key*. Raises ``InvalidArgumentError`` for one that is too long."""
    names = [
        _SPECIAL.sub(lambda found: b"%%%02X" % found[0][0], segment).decode() or EMPTY
        for segment in key_bytes(key).split(b"/")
    ]
    if max(map(len, names)) >= MAX_NAME:
        raise InvalidArgumentError(f"the key {key[:40]!r}... is too long for the name of a file: export JSON lines")
    return Path(*names)


def key_of(path: Path) -> str:
    """Return the key of the file at the relative *path*; the inverse of ``path_of``."""
    names = list(path.parts)
    if any(not _NAME.fullmatch(name) for name in names) or any(name.endswith(BESIDE) for name in names[:-1]):
        raise InvalidArgumentError(f"the file {path} stands for no key: write special characters as %XX")
    names[-1] = names[-1].removesuffix(BESIDE)
    return key_text(b"/".join(b"" if name == EMPTY else unquote_to_bytes(name) for name in names))


def _make_folder(folder: Path, root: Path) -> None:
    """Make *folder* below *root*; a file of that name is renamed to stand beside it."""
    for above in [*reversed(folder.relative_to(root).parents), folder.relative_to(root)]:
        path = root / above
        if path.is_file():
            path.rename(path.with_name(path.name + BESIDE))
        path.mkdir(exist_ok=True)


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
