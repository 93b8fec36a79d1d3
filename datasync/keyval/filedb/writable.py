"""A file store that also writes: one file of its own, in the first folder."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, ClassVar

from datasync.errors import InvalidArgumentError, UnknownOutcome, UnsupportedError
from datasync.keyval.filedb.config import URL_OPTIONS, read_options
from datasync.keyval.filedb.store import FileStore, applied, check_text
from datasync.keyval.types import Capability, CommitResult, Condition, PutOp, WriteOp
from datasync.keyval.urls import StoreURL


class WritableFileStore(FileStore):
    """A :class:`FileStore` that writes to one file, ``write_file`` in the first folder, and to no other.

    A transaction is written whole or not at all, and a write that returned survives a power failure. Conditions hold
    against every process that writes by this library, not against an editor. A key of another file cannot be changed.

    Threads: any.
    """

    capabilities: ClassVar[frozenset[Capability]] = frozenset(
        {Capability.TXN, Capability.CAS, Capability.CONSISTENT_LIST}
    )
    url_options: ClassVar[Mapping[str, str]] = URL_OPTIONS

    def __init__(self, *paths: str | os.PathLike[str], **options: Any) -> None:
        self._setup(read_options({**options, "writable": True}, paths))

    @classmethod
    def from_url(cls, url: StoreURL, **options: Any) -> FileStore:
        """Open ``file:///absolute/path`` or ``file:relative/path``; a writable one with ``?writable=true``."""
        if url.user is not None or url.hosts:
            raise InvalidArgumentError("a file URL names a folder: file:///absolute/path or file:relative/path")
        if url.path == "/":
            raise InvalidArgumentError("a file URL must not name the whole file system")
        config = read_options(options, [url.path] if url.path else [])
        settings = asdict(config)
        paths = settings.pop("configuration_paths")
        return (WritableFileStore if config.writable else FileStore)(*paths, **settings)

    def commit(
        self, ops: Sequence[WriteOp], conditions: Sequence[Condition] = (), otherwise: Sequence[WriteOp] = ()
    ) -> CommitResult:
        self._guard.check()
        self._looker.check_open()
        for key in (*(op.key for op in ops), *(condition.key for condition in conditions)):
            check_text(key)
        own = self._own
        assert own is not None
        with own.locked(), self._looker.looking() as files:
            stored = files.picture.pairs
            for condition in conditions:
                pair = stored.get(condition.key)
                if (None if pair is None else pair.value) != condition.value:
                    return CommitResult(False, files.revision, 0)
            before = files.own_pairs
            pairs, deleted = applied(ops, before, stored)
            _check_own(ops, stored, before, files.owners)
            if pairs != before:
                data = own.write(pairs)
                try:
                    files.wrote(own.path, data, pairs)
                except OSError as error:
                    raise UnknownOutcome(f"{own.path} was removed while it was written") from error
            return CommitResult(True, files.revision, deleted)


def _check_own(
    ops: Sequence[WriteOp], stored: Mapping[str, object], own: Mapping[str, object], owners: Mapping[str, str]
) -> None:
    """Raise ``UnsupportedError`` if *ops* would change a key of another file than the own one."""
    for op in ops:
        if isinstance(op, PutOp) or not op.prefix:
            touched = [op.key] if op.key in stored else []
        else:
            touched = [key for key in stored if key.startswith(op.key)]
        other = next((key for key in touched if key not in own), None)
        if other is not None:
            raise UnsupportedError(
                f"the key {other[:80]!r} stands in {owners[other]}, which this store does not write: change that file"
            )
