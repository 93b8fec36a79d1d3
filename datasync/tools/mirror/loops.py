"""Finds mirrors that lead back to the destination from which they read, or share keys of it with another one.

Source: contract C23.
"""

from __future__ import annotations

from fnmatch import fnmatchcase

from datasync.errors import InvalidArgumentError, PermissionDenied
from datasync.keyval.api import Store
from datasync.runtime.logs import get_logger
from datasync.tools.mirror.record import RECORDS, MirrorRecord, Origin, location, overlap, running_mirrors
from datasync.tools.mirror.target import MirrorTarget

log = get_logger(__name__)


class MirrorLoopError(InvalidArgumentError):
    """A mirror would copy what was brought, over whatever mirrors, from its own destination."""


class LoopCheck:
    """Reads the records in the *source* of a mirror under *source_prefix*.

    The records of the mirrors that write to the source name their own sources, and the sources of those. A loop shows
    by the name of our destination or, where a store has two names, by the id of our own record.

    Threads: any.
    """

    def __init__(self, source: Store, source_prefix: str) -> None:
        self._source = source
        self._prefix = source_prefix
        self._told = False

    def check(self, target: MirrorTarget) -> bool:
        """Give *target* the origins of the source; return True if they are others than before.

        Of the mirrors of a loop the one goes on that is older than the one before it, and of two mirrors with common
        keys the older one. Of those the latter are not found in a destination without locks, where nothing shows
        whether a mirror runs.

        Raises:
          MirrorLoopError: *target* is one of them.
          InvalidArgumentError: Another mirror writes keys of *target*.
          StoreError: The source, or *target*, could not be read.
        """
        record = target.record
        _check_alone(target, record)
        if record is not None and overlap(target.prefix, self._prefix) and self._is_same(target):
            raise MirrorLoopError(
                f"{self._source.name}: {self._prefix!r} and {target.prefix!r} are prefixes of one store, and overlap"
            )
        origins: dict[Origin, None] = {}
        for upstream in self._upstream():
            path = upstream.as_origins()
            origins.update(dict.fromkeys(path))
            if _leads_to(target, record, path) and (record is None or record.since >= upstream.since):
                raise MirrorLoopError(
                    f"{self._source.name}: a mirror from {upstream.store} writes to {upstream.prefix!r}, and its data "
                    f"comes from {target.store.name}, {target.prefix!r}: end that mirror before one the other way"
                )
        found = tuple(origins)
        changed, target.origins = found != target.origins, found
        return changed

    def _is_same(self, target: MirrorTarget) -> bool:
        try:
            return target.is_in(self._source)
        except PermissionDenied as error:
            self._tell(error)
            return False

    def _upstream(self) -> list[MirrorRecord]:
        try:
            return [one for one in running_mirrors(self._source) if overlap(one.prefix, self._prefix)]
        except PermissionDenied as error:
            self._tell(error)
            return []

    def _tell(self, error: PermissionDenied) -> None:
        if not self._told:
            log.warning("loops of mirrors cannot be found: allow to read %r: %s", RECORDS, error)
        self._told = True


def _check_alone(target: MirrorTarget, record: MirrorRecord | None) -> None:
    """Raise if an older mirror writes to a part of *target*, or to something of which it is a part."""
    if not target.fenced:
        return
    for other in running_mirrors(target.store):
        if other.prefix == target.prefix or not overlap(other.prefix, target.prefix):
            continue
        outer, inner = (target, other) if other.prefix.startswith(target.prefix) else (other, target)
        if _leaves_alone(outer.excluded, inner.prefix[len(outer.prefix) :]):
            continue
        if record is None or record.since >= other.since:
            raise InvalidArgumentError(
                f"{target.store.name}: a mirror from {other.store} writes to {other.prefix!r}, and one to "
                f"{target.prefix!r} would write to the same keys: exclude '{inner.prefix[len(outer.prefix) :]}*' from "
                f"the one to {outer.prefix!r}, or end one of them"
            )


def _leaves_alone(patterns: tuple[str, ...], prefix: str) -> bool:
    """Return True if every key with *prefix* matches one of *patterns*."""
    return any(one.endswith("*") and fnmatchcase(prefix, one) for one in patterns)


def _leads_to(target: MirrorTarget, record: MirrorRecord | None, path: tuple[Origin, ...]) -> bool:
    here = location(target.store)
    return any(
        (record is not None and one.mirror_id == record.mirror_id)
        or (one.store == here and overlap(one.prefix, target.prefix))
        for one in path
    )
