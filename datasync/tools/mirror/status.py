"""The condition of a mirror.

Source: contract C18, C22.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from datasync.syncbase.status import TransportStatus


class MirrorState(str, Enum):
    """The state of a mirror."""

    #: The source was not read yet, or another mirror holds the destination.
    WAITING = "waiting"
    #: The destination is compared with the source, and differences are written.
    COPYING = "copying"
    #: The destination has everything that is known of the source.
    SYNCED = "synced"
    #: Changes are on their way.
    LAGGING = "lagging"
    PAUSED = "paused"
    #: An end cannot be reached, deletes are held, or the destination did not take some keys.
    FAILING = "failing"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class CopyProgress:
    """A comparison that runs: *written* of *differences* in *seconds*; *left* is the seconds that remain, if known."""

    written: int
    differences: int
    seconds: float

    @property
    def left(self) -> float | None:
        """The seconds that the rest will take at this rate; None before the first key."""
        return self.seconds / self.written * (self.differences - self.written) if self.written else None


@dataclass(frozen=True, slots=True)
class MirrorStatus:
    """A mirror; times are seconds of the epoch.

    Attributes:
      source: The transport that reads the source. ``owed`` of its only subscription has the keys that the destination
        did not take.
      destination: The name of the destination.
      last_error: The last error of the destination, or the one that ended the mirror.
      revision: The revision of the source up to which everything was written.
      lag_revisions: How far the source is ahead; 0 in a source without revisions that is in sync.
      lag_seconds: Since when the destination may have been behind; None before it was in sync for the first time.
      in_sync_since: Since when the mirror has followed without a break; None while it does not.
      applied_at: When something was applied last; None before the first time.
      keys: The number of keys that were copied.
      puts, deletes: What was written so far; *repaired*, the puts and deletes of comparisons after the first one.
      extra: Keys that only the destination has, and that are left alone.
      held: Keys of the destination whose deletes are held, because they were too many at once.
      divided: Transactions that the destination could not take as a whole.
      comparisons: The number of comparisons of the whole destination.
      progress: The comparison that runs, if one does.
      fenced: False if the destination has no locks: then a second mirror displaces this one.
    """

    state: MirrorState
    source: TransportStatus
    destination: str
    last_error: BaseException | None
    revision: int
    lag_revisions: int
    lag_seconds: float | None
    in_sync_since: float | None
    applied_at: float | None
    keys: int
    puts: int
    deletes: int
    repaired: int
    extra: int
    held: tuple[str, ...]
    divided: int
    comparisons: int
    progress: CopyProgress | None
    fenced: bool
