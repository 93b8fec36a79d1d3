"""The transactions that one CHANGE of the source becomes in the destination.

Source: contract C4.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from itertools import groupby
from typing import Any

from datasync.errors import DatasyncError, InvalidArgumentError
from datasync.events import ChangeEvent, Op
from datasync.keyval.types import DeleteOp, PutOp, WriteOp
from datasync.tools.mirror.key_map import KeyMap
from datasync.tools.mirror.lifetimes import KeyLifetimes
from datasync.tools.mirror.writer import Unit


class ChangePlan:
    """The operations of *event* in the destination, one unit for each transaction of the source.

    An event may have several transactions, with no key in common, so that each of them stays whole.

    Args:
      keys, prefix: The keys, and the prefix of the destination.
      copied: The keys that were copied: of the destination, and of the source.
      least: The revision of the destination, which a redelivery of older keys does not take back.
      lifetimes: How the keys that are put are copied.
      may_delete: False if the deletes are left out.
    """

    def __init__(
        self,
        event: ChangeEvent,
        keys: KeyMap,
        prefix: str,
        copied: Mapping[str, str],
        least: int,
        lifetimes: KeyLifetimes,
        *,
        may_delete: bool,
    ) -> None:
        self.units: list[Unit] = []
        #: The keys of the destination, with their prefix, and those of the source.
        self.places: dict[str, str] = {}
        #: The keys of the source that have no place in the destination.
        self.rejected: dict[str, DatasyncError] = {}
        #: The keys of the destination, without prefix, that are put or deleted; and those whose deletes are left out.
        self.written: list[str] = []
        self.held: list[str] = []
        self._prefix = prefix
        taken: dict[str, str] = {}  # by the event itself: the keys of the destination, and of the source
        changes: Any = event.get_changes()
        for revision, group in groupby(changes, key=lambda change: change.revision):
            ops: list[WriteOp] = []
            for change in group:
                key = self._place(change, keys, copied, taken)
                if key is None:
                    continue
                absolute = prefix + key
                if change.op is not Op.DELETE and change.key in lifetimes.left_out:
                    self._leave_out(change.key, lifetimes.left_out[change.key])
                    continue
                if change.op is not Op.DELETE:
                    taken[key] = change.key
                    ops.append(PutOp(absolute, change.raw, lifetimes.seconds.get(change.key)))
                elif may_delete:
                    ops.append(DeleteOp(absolute))
                else:
                    self.held.append(key)
                    continue
                self.places[absolute] = change.key
                self.written.append(key)
            if ops:
                self.units.append(Unit(max(revision, least), ops))

    def note(self, copied: dict[str, str], refused: Container[str]) -> int:
        """Bring *copied* up to date after everything but *refused* was written.

        Return the number of keys that only the destination has from now on.
        """
        cut = len(self._prefix)
        for op in (op for unit in self.units for op in unit.ops if op.key not in refused):
            if isinstance(op, PutOp):
                copied[op.key[cut:]] = self.places[op.key]
            else:
                copied.pop(op.key[cut:], None)
        return sum(copied.pop(key, None) is not None for key in self.held)

    def _leave_out(self, key: str, why: DatasyncError | None) -> None:
        if why is not None:
            self.rejected[key] = why

    def _place(self, change: Any, keys: KeyMap, copied: Mapping[str, str], taken: Mapping[str, str]) -> str | None:
        """Return the key in the destination; None if it has none, or its deletion concerns nothing there."""
        key = change.key
        try:
            place = keys.destination_of(key)
            if place is None:
                return None
            other = taken.get(place) or copied.get(place, key)
            if change.op is Op.DELETE:
                return place if copied.get(place) == other == key else None
            if other != key:
                raise InvalidArgumentError(f"{key!r} and {other!r} have one place: {place!r}")
        except InvalidArgumentError as error:
            self.rejected[key] = error
            return None
        return place
