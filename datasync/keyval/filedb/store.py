"""A store in folders of files that other programs and people write."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from datasync.errors import InvalidArgumentError, UnsupportedError
from datasync.keyval.api import Store
from datasync.keyval.diff_stream import DiffStream, KnownPictures, PictureScan
from datasync.keyval.driver import Scan, Stream
from datasync.keyval.effects import net_effect
from datasync.keyval.filedb.config import FileConfig, read_options
from datasync.keyval.filedb.files import FileRules, FileSet
from datasync.keyval.filedb.looker import FilePictures, Looker, under
from datasync.keyval.filedb.own_file import OwnFile
from datasync.keyval.types import Capability, CommitResult, Condition, KeyValue, WriteOp
from datasync.runtime.threads import ForkGuard


class FileStore(Store):
    """Key-value pairs in files that other programs and people write: folders of JSON and YAML files, or a ConfigMap.

    ``read`` and ``scan`` look at the files; a stream looks when there is a hint, and now and then. What cannot be read
    keeps its last known good content, and ``problems`` says why. With a ``status_path``, ``put`` writes to that file.

    Args:
      *paths: Folders, or files in JSON or YAML. The options are the fields of
        :class:`~datasync.keyval.filedb.config.FileConfig`.

    Raises:
      InvalidArgumentError: An option is unknown or invalid. No file is read yet.

    Threads: any. After a fork the parent's store keeps working; the child opens its own.
    Source: Go ``filedb.Client``; contract C13, C18.

    .. versionadded:: 1.0
    """

    capabilities: ClassVar[frozenset[Capability]] = frozenset({Capability.CONSISTENT_LIST})
    resumes = True

    def __init__(self, *paths: str | os.PathLike[str], **options: Any) -> None:
        config = read_options(options, paths)
        if config.writable:
            raise InvalidArgumentError("a FileStore is read-only: open it with connect(), or a WritableFileStore")
        self._setup(config)

    def _setup(self, config: FileConfig) -> None:
        self.config = config
        self._roots = [os.path.abspath(path) for path in config.configuration_paths]
        self._guard = ForkGuard(self.name)
        written = config.status_path or (os.path.join(self._roots[0], config.write_file) if config.writable else "")
        self._own = OwnFile(written, config.lock_timeout, config.max_bytes) if written else None
        rules = FileRules(
            layout=config.layout,
            grace=config.grace,
            max_bytes=config.max_bytes,
            excluded=self._own.path if self._own is not None and config.status_path else "",
            own=config.write_file if config.writable else "",
        )
        self._looker = Looker(FileSet(self._roots, rules), config, self.name)
        self._known = KnownPictures()

    @property
    def name(self) -> str:
        return f"file://{','.join(self._roots)}"

    def check(self) -> None:
        self._guard.check()
        self._looker.look()

    def problems(self) -> Mapping[str, str]:
        return self._looker.problems

    def read(self, key: str) -> KeyValue | None:
        self._guard.check()
        check_text(key)
        return self._looker.look().pairs.get(key)

    def scan(self, prefix: str, *, keys_only: bool = False) -> Scan:
        self._guard.check()
        return PictureScan(self._known, prefix, under(prefix, self._looker.look()), keys_only=keys_only)

    def commit(
        self, ops: Sequence[WriteOp], conditions: Sequence[Condition] = (), otherwise: Sequence[WriteOp] = ()
    ) -> CommitResult:
        """Write to the status file, which is not part of the store. Raises ``UnsupportedError`` without one."""
        self._guard.check()
        self._looker.check_open()
        for op in ops:
            check_text(op.key)
        own = self._own
        if own is None:
            raise UnsupportedError(f"{self.name} is read-only: open it with writable=true, or with a status_path")
        if conditions:
            raise UnsupportedError(f"{self.name} has no conditions in its status file")
        with own.locked():
            before = own.read()
            pairs, deleted = applied(ops, before, before)
            if pairs != before:
                own.write(pairs)
        return CommitResult(True, self._looker.current().revision, deleted)

    def stream(self, prefix: str, after: int) -> Stream:
        self._guard.check()
        self._looker.follow()
        return DiffStream(FilePictures(self._looker, prefix), self._known, prefix, after, name=self.name)

    def close(self) -> None:
        if not self._guard.forked:
            self._looker.close()


def applied(
    ops: Sequence[WriteOp], own: Mapping[str, bytes], stored: Mapping[str, object]
) -> tuple[dict[str, bytes], int]:
    """Return the pairs of the file that has *own* after *ops*, and the number of deleted keys of *stored*."""
    effect = net_effect(
        ops, stored.__contains__, lambda prefix: sorted(key for key in stored if key.startswith(prefix))
    )
    pairs = dict(own)
    for key, op in effect.items():
        pairs.pop(key, None)
        if op is not None:
            pairs[key] = op.value
    return pairs, sum(op is None for op in effect.values())


def check_text(key: str) -> None:
    """Raise ``InvalidArgumentError`` for a lone surrogate, which no file can hold."""
    try:
        key.encode()
        return
    except UnicodeEncodeError:
        pass
    raise InvalidArgumentError(f"the key {key[:40]!r} must be valid Unicode: it has half of a surrogate pair")
