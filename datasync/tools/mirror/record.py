"""The record of a mirror in its destination: where the data comes from, and up to which revision it is there.

It is written in the same transaction as the data. It also marks the origin of the data, by which loops are found.

Source: contract C16, C23.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import NamedTuple
from urllib.parse import quote

from datasync.keyval.driver import StoreDriver
from datasync.keyval.types import Capability

#: In front of the keys of all records; no mirror copies what is under it.
RECORDS = "datasync/mirrors/"
_LOCK = "/lock"
#: Names of stores that mean another store on another machine.
_LOCAL = re.compile(r"^(sqlite|file|memory):|:///|[/,](localhost|127\.|\[::1\])")
_MEMORY = "memory://"
_NODE = os.uname().nodename if hasattr(os, "uname") else os.environ.get("COMPUTERNAME", "")


class Origin(NamedTuple):
    """A prefix from which data comes, through the mirror *mirror_id*, which began at *since* (seconds of the epoch)."""

    mirror_id: str
    store: str
    prefix: str
    since: float


@dataclass(frozen=True, slots=True)
class MirrorRecord:
    """The record of a mirror.

    Attributes:
      mirror_id: Names the mirror for ever.
      writer: Names the process that writes it, anew each time that it takes the destination.
      number: Counts its transactions.
      store, source_prefix: The source.
      prefix: The destination's prefix.
      revision: The revision of the source up to which everything is in the destination.
      copying: True while the destination is between that revision and a later one.
      since: When the writer began, in seconds of the epoch.
      origins: The origins of what is in the source.
      excluded: The patterns of keys that the mirror leaves alone.
    """

    mirror_id: str
    writer: str
    number: int
    store: str
    source_prefix: str
    prefix: str
    revision: int
    copying: bool
    since: float
    origins: tuple[Origin, ...] = ()
    excluded: tuple[str, ...] = ()

    def encode(self) -> bytes:
        """Return the record as JSON."""
        return json.dumps(asdict(self), separators=(",", ":")).encode()

    @classmethod
    def decode(cls, data: bytes) -> MirrorRecord | None:
        """Return the record of *data*; None if it is not one of this version."""
        try:
            fields = json.loads(data)
            fields["origins"] = tuple(Origin(*one) for one in fields["origins"])
            fields["excluded"] = tuple(fields.get("excluded", ()))
            record = cls(**fields)
            texts = (record.mirror_id, record.store, record.source_prefix, record.prefix, *record.excluded)
            return record if all(isinstance(text, str) for text in texts) else None
        except (ValueError, TypeError, KeyError):
            return None

    def as_origins(self) -> tuple[Origin, ...]:
        """Return the source and its own origins."""
        return (Origin(self.mirror_id, self.store, self.source_prefix, self.since), *self.origins)


def record_key(prefix: str) -> str:
    """Return the key of the record for the destination *prefix*."""
    return RECORDS + (quote(prefix.encode("utf-8", "surrogateescape"), safe="") or "%")


def lock_name(prefix: str) -> str:
    """Return the name of the lock of the mirror whose destination is *prefix*."""
    return record_key(prefix) + _LOCK


def location(store: StoreDriver) -> str:
    """Return a text that no other store has; with the host, or the process, within which its name means this store."""
    identity = store.identity
    if not _LOCAL.search(identity):
        return identity
    if not identity.startswith(_MEMORY):
        return f"{identity} on {_NODE}"
    nameless = f", {id(store):x}" if identity == _MEMORY else ""
    return f"{identity} of process {os.getpid()} on {_NODE}{nameless}"


def overlap(one: str, other: str) -> bool:
    """Return True if a key can have both prefixes."""
    return one.startswith(other) or other.startswith(one)


def running_mirrors(store: StoreDriver) -> Iterator[MirrorRecord]:
    """Yield the records of the mirrors that copy to *store* now; of all of them where the store has no locks."""
    pairs = {pair.key: pair.value for pair in store.scan(RECORDS)}
    locked = {key.rpartition(_LOCK + "/")[0] for key in pairs}
    for key, value in pairs.items():
        record = None if _LOCK + "/" in key else MirrorRecord.decode(value)
        if record is not None and (key in locked or Capability.LEASE not in store.capabilities):
            yield record
