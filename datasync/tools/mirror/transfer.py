"""The handling of each event of a mirror's source.

Source: contract C4, C10, C18, C20.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from datasync.consumer.guard import DeleteGuard
from datasync.errors import (
    ClosedError,
    DatasyncError,
    ForkedError,
    InvalidArgumentError,
    Rejected,
    UnsupportedError,
)
from datasync.events import ChangeEvent, Op, Pair, ResyncEvent
from datasync.keyval.types import ROOT, Capability, DeleteOp, KeyValue, PutOp, WriteOp
from datasync.kvdbsync.plugin import Plugin
from datasync.runtime.backoff import Backoff
from datasync.runtime.logs import get_logger
from datasync.runtime.monitoring import Tally
from datasync.runtime.threads import Flag
from datasync.syncbase.status import TransportState
from datasync.tools.mirror.change_plan import ChangePlan
from datasync.tools.mirror.differences import Differences
from datasync.tools.mirror.key_map import KeyMap
from datasync.tools.mirror.lifetimes import Lifetimes
from datasync.tools.mirror.loops import LoopCheck
from datasync.tools.mirror.status import CopyProgress, MirrorState, MirrorStatus
from datasync.tools.mirror.target import DisplacedError, MirrorTarget
from datasync.tools.mirror.writer import BatchWriter, Unit

T = TypeVar("T")

log = get_logger(__name__)

#: A share of deletes never holds so few, unless nothing would be left.
FEW_DELETES = 10
#: First and longest delay in seconds between two attempts to write to the destination.
RETRY = 0.1, 5.0
#: Seconds between two looks whether the mirror was closed, or goes on.
POLL = 0.5


class Transfer:
    """Applies the events of *plugin* to *target*.

    Args:
      name: The resync name.
      plugin, target, keys: The source, the destination, and the keys between them.
      delete, max_delete, max_txn_ops, dry_run: As of ``PrefixMirror``.
      lifetimes: What is done with keys that expire.
      loops: Asked before the first write, and at each comparison.
      closing: Set when the mirror ends.

    Threads: one calls ``compare`` and ``apply``; the rest from any.
    """

    def __init__(
        self,
        name: str,
        plugin: Plugin[Any],
        target: MirrorTarget,
        keys: KeyMap,
        *,
        delete: bool,
        max_delete: int | float | None,
        max_txn_ops: int,
        dry_run: bool,
        lifetimes: Lifetimes,
        loops: LoopCheck,
        closing: Flag,
    ) -> None:
        self._name = name
        self._plugin = plugin
        self._target = target
        self._keys = keys
        self._delete = delete
        self._dry_run = dry_run
        self._lifetimes = lifetimes
        self._loops = loops
        self._closing = closing
        self._writer = BatchWriter(self._commit, max_txn_ops)
        self._live = Capability.HISTORY in plugin.store.capabilities
        self._paused = Flag()
        self._released: frozenset[str] = frozenset()  # keys whose deletes need no more guard
        #: Set after the first comparison, or when the mirror failed.
        self.compared = Flag()
        self.differences: Differences | None = None
        #: The last error of the destination; kept when it is over.
        self.last_error: BaseException | None = None
        self._guard = DeleteGuard(max_delete, FEW_DELETES)
        self._lock = threading.Lock()  # guards what status() reads: the guard's keys, and the fields below
        self._state = MirrorState.WAITING
        self._revision = self._comparisons = self._repaired = self._extra = 0
        self._copied: dict[str, str] = {}  # key of the destination to that of the source, both without prefix
        self._progress: tuple[int, int, float] | None = None  # puts and deletes before, differences, begin
        self._applied_at: float | None = None  # of the epoch
        self._failing = False  # the destination
        self._reconnects = 0
        self._behind_since: float | None = None  # monotonic
        self._in_sync_since: float | None = None

    # Control.

    @property
    def owns(self) -> bool:
        """True while the destination is ours, or nothing is written to it."""
        return self._dry_run or self._target.claimed

    def measure(self, tally: Tally | None) -> None:
        """Count what is written in *tally* from now on."""
        self._writer.tally = tally

    def pause(self) -> None:
        """Write nothing until ``resume``."""
        self._paused.set()

    def resume(self) -> None:
        """Go on after ``pause``."""
        self._paused.clear()

    def release_deletes(self) -> None:
        """Let the deletes that are held now go on with the next comparison, whatever their number."""
        with self._lock:
            self._released = frozenset(self._guard.held)

    # Events.

    def compare(self, event: ResyncEvent) -> None:
        """Make the destination equal to *event*. Raises ``Rejected`` with the keys that it did not take."""
        begun = time.monotonic()
        wanted, rejected = self._wanted(event)
        while True:
            try:
                rejected |= self._compare(event.revision, wanted)
                break
            except DisplacedError as error:
                self._displaced(error)
        self.compared.set()
        self._reached(event.revision, begun)
        if rejected:
            raise Rejected(rejected)

    def apply(self, event: ChangeEvent, compare_again: Callable[[], object]) -> None:
        """Write *event*; call *compare_again* if the destination is not what it was after the last event.

        Raises ``Rejected`` with the keys that the destination did not take.
        """
        begun = time.monotonic()
        with self._lock:
            self._behind_since = self._behind_since or begun
            self._state = MirrorState.LAGGING
        changes = event.get_changes()
        puts = [change.get_key() for change in changes if change.get_change_type() is not Op.DELETE]
        plan = ChangePlan(
            event,
            self._keys,
            self._target.prefix,
            self._copied,
            self._revision,
            self._patiently(lambda: self._lifetimes.read(puts)),
            may_delete=self._may_delete(len(changes) - len(puts)),
        )
        try:
            refused = self._writer.write(plan.units)
        except DisplacedError as error:
            self._displaced(error)
            compare_again()  # the RESYNC that follows has these changes too
            return
        with self._lock:
            self._extra += plan.note(self._copied, refused)
            for key in plan.written:
                self._guard.drop(key)
            if plan.held and self._delete:
                self._guard.hold(plan.held)
        self._reached(event.revision, begun)
        rejected = plan.rejected | {plan.places[key]: error for key, error in refused.items()}
        if rejected:
            raise Rejected(rejected)

    # A RESYNC.

    def _wanted(self, event: ResyncEvent) -> tuple[dict[str, Pair[Any]], dict[str, DatasyncError]]:
        """Return the pairs of *event* by their key in the destination, and the keys that have no place there."""
        wanted: dict[str, Any] = {}
        rejected: dict[str, DatasyncError] = {}
        for pair in event.get_values()[ROOT]:
            key = pair.get_key()
            try:
                mapped = self._keys.destination_of(key)
                if mapped is not None and mapped in wanted:
                    raise InvalidArgumentError(f"{key!r} and {wanted[mapped].key!r} have one place: {mapped!r}")
            except InvalidArgumentError as error:
                rejected[key] = error
                continue
            if mapped is not None:
                wanted[mapped] = pair
        return wanted, rejected

    def _compare(self, revision: int, wanted: Mapping[str, Pair[Any]]) -> dict[str, DatasyncError]:
        self._set_state(MirrorState.WAITING)
        self._patiently(self._take)
        self._set_state(MirrorState.COPYING)
        begun = time.monotonic()
        lifetimes = self._patiently(lambda: self._lifetimes.read(pair.key for pair in wanted.values()))
        left_out = {key for key, pair in wanted.items() if pair.key in lifetimes.left_out}
        wanted = {key: pair for key, pair in wanted.items() if key not in left_out} if left_out else wanted
        expiring = {key for key, pair in wanted.items() if pair.key in lifetimes.seconds}
        found = self._patiently(lambda: Differences.between(wanted, self._present(left_out), expiring))
        deletes = self._deletes(found)
        before = self._writer.puts + self._writer.deletes
        with self._lock:
            self.differences = found
            self._progress = before, len(found) + len(deletes), begun
        refused = {}
        if not self._dry_run:
            puts = [(key, wanted[key], lifetimes.seconds.get(wanted[key].key)) for key in found.puts(wanted)]
            refused = self._write_differences(puts, deletes, revision)
        written = self._writer.puts + self._writer.deletes - before
        with self._lock:
            self._progress = None
            self._copied = {key: pair.key for key, pair in wanted.items()}
            self._extra = len(found.extra) - len(deletes)
            self._repaired += written if self._comparisons else 0
            self._comparisons += 1
        seconds = time.monotonic() - begun
        log.info("%s: compared %d keys, wrote %d, %.1f s", self._target.store.name, len(wanted), written, seconds)
        rejected = {key: error for key, error in lifetimes.left_out.items() if error is not None}
        return rejected | {wanted[key].key: error for key, error in refused.items() if key in wanted}

    def _take(self) -> None:
        """Make the destination ours, unless what the source has comes from there."""
        if self._dry_run:
            return
        self._loops.check(self._target)  # before anything is written
        while not self._target.claim():
            self._wait_while_paused()
        self._loops.check(self._target)  # of two mirrors that start at once, one sees the other now

    def _present(self, left_out: Container[str]) -> Iterator[KeyValue]:
        """Iterate over the destination, without what is none of our business."""
        pairs = self._target.pairs()
        return (pair for pair in pairs if pair.key not in left_out and self._keys.concerns(pair.key))

    def _deletes(self, found: Differences) -> list[str]:
        """Return the keys to delete; those that are too many, and were not released, are held."""
        deletes = found.extra if self._delete else []
        with self._lock:
            released, self._released = self._released, frozenset()
            self._guard.release()
            others = [key for key in deletes if key not in released] if released else deletes
            if self._guard.admits(len(others), found.known):
                return deletes
            self._guard.hold(others)
        self._tell_held(len(others), found.known)
        return [key for key in deletes if key in released]

    def _write_differences(
        self, puts: Sequence[tuple[str, Pair[Any], float | None]], deletes: Sequence[str], revision: int
    ) -> dict[str, DatasyncError]:
        """Write the differences, in one transaction if the destination takes it, so that nobody sees a part of them."""
        prefix = self._target.prefix
        ops: list[WriteOp] = [PutOp(prefix + key, pair.raw, seconds) for key, pair, seconds in puts]
        ops += [DeleteOp(prefix + key) for key in deletes]
        refused = self._writer.write(Unit(revision, (op,), op is ops[-1]) for op in ops)
        record = self._target.record
        if record is None or record.copying or record.revision != revision:
            self._commit((), revision, True)
        return {key[len(prefix) :]: error for key, error in refused.items()}

    # A CHANGE.

    def _may_delete(self, deletes: int) -> bool:
        """Return True if the *deletes* of an event go on.

        In a source with history they are evidence. Otherwise they are the difference to a listing, which may have been
        empty by mistake.
        """
        if not self._delete or self._live:
            return self._delete
        with self._lock:
            admitted = self._guard.admits(deletes, len(self._copied))
        if not admitted:
            self._tell_held(deletes, len(self._copied))
        return admitted

    # Writing.

    def _commit(self, ops: Sequence[WriteOp], revision: int, arrives: bool) -> None:
        """Write one transaction, as often as it needs: always the same one, which the record lets in once."""
        self._patiently(lambda: self._target.commit(ops, revision, copying=not arrives))

    def _patiently(self, step: Callable[[], T]) -> T:
        """Call *step* until it succeeds. Refusals end it, a destination that was taken from us, and ``close``."""
        backoff = Backoff(*RETRY)
        failed_at: float | None = None
        while True:
            self._wait_while_paused()
            try:
                result = step()
                break
            except (DisplacedError, InvalidArgumentError, UnsupportedError, ClosedError, ForkedError):
                raise
            except DatasyncError as error:
                if failed_at is None:
                    log.warning("the mirror waits: %s", error)
                failed_at = failed_at or time.monotonic()
                self._failed(error)
                self._closing.wait(backoff.next())
        if failed_at is not None:
            log.warning("the mirror goes on after %.1f s", time.monotonic() - failed_at)
            with self._lock:
                self._failing = False
        return result

    def _wait_while_paused(self) -> None:
        while not self._closing.is_set():
            if not self._paused.is_set():
                return
            self._closing.wait(POLL)
        raise ClosedError("the mirror is closed")

    # What is told.

    def _displaced(self, error: DisplacedError) -> None:
        """Prepare to compare again. Raises *error* if the other mirror would be displaced in turn, and so on."""
        if error.by_mirror and not self._target.fenced:
            raise error
        log.warning("the mirror compares again: %s", error)
        self._target.forget()
        with self._lock:
            self.last_error = error
            self._in_sync_since = None

    def _failed(self, error: BaseException) -> None:
        with self._lock:
            self.last_error = error
            self._failing = True
            self._in_sync_since = None

    def _set_state(self, state: MirrorState) -> None:
        with self._lock:
            self._state = state
            self._behind_since = self._behind_since or time.monotonic()

    def _reached(self, revision: int, begun: float) -> None:
        """Note that the destination is at *revision*, whose event began at the monotonic time *begun*."""
        behind = self._plugin.status().subscriptions[self._name].pending
        with self._lock:
            self._revision = revision if self._state is MirrorState.COPYING else max(revision, self._revision)
            self._state = MirrorState.LAGGING if behind else MirrorState.SYNCED
            self._applied_at = time.time()
            # What waits came while this event was handled: a source that is never idle is not ever further behind.
            self._behind_since = begun if behind else None
            if not behind:
                self._in_sync_since = self._in_sync_since or time.time()

    def _tell_held(self, deletes: int, known: int) -> None:
        where = f"{self._target.store.name}, {self._target.prefix!r}"
        log.error("the mirror holds %d deletes of %d keys in %s: is the source right?", deletes, known, where)

    def status(self, closed: bool, failure: BaseException | None) -> MirrorStatus:
        """Return the status. *closed* and *failure* are those of the mirror."""
        source = self._plugin.status()
        mine = source.subscriptions.get(self._name)
        now = time.monotonic()
        with self._lock:
            lost = source.state is TransportState.DOWN
            if lost or source.reconnects != self._reconnects:
                self._reconnects = source.reconnects
                self._in_sync_since = None if lost or self._in_sync_since is None else time.time()
            behind = mine is None or bool(mine.pending or mine.in_flight or mine.resync_due) or not self._comparisons
            lag = 0.0 if self._behind_since is None else now - self._behind_since
            if lost and source.silence is not None:
                lag = max(lag, source.silence)
            progress = None
            if self._progress is not None:
                before, differences, begun = self._progress
                progress = CopyProgress(self._writer.puts + self._writer.deletes - before, differences, now - begun)
            return MirrorStatus(
                state=self._state_locked(closed, lost, behind, mine is not None and bool(mine.owed)),
                source=source,
                destination=self._target.store.name,
                last_error=failure or self.last_error,
                revision=self._revision,
                lag_revisions=max(source.revision - self._revision, 0) if behind else 0,
                lag_seconds=lag if self._comparisons else None,
                in_sync_since=self._in_sync_since,
                applied_at=self._applied_at,
                keys=len(self._copied),
                puts=self._writer.puts,
                deletes=self._writer.deletes,
                repaired=self._repaired,
                extra=self._extra,
                held=tuple(self._guard.held),
                divided=self._writer.divided,
                comparisons=self._comparisons,
                progress=progress,
                fenced=self._target.fenced,
            )

    def _state_locked(self, closed: bool, lost: bool, behind: bool, owed: bool) -> MirrorState:
        if closed:
            return MirrorState.CLOSED
        if self._paused.is_set():
            return MirrorState.PAUSED
        if lost or self._failing or owed or self._guard.held:
            return MirrorState.FAILING
        if self._state in (MirrorState.WAITING, MirrorState.COPYING):
            return self._state
        return MirrorState.LAGGING if behind else MirrorState.SYNCED
