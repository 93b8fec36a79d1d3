"""The terms of office of a leader, of which none may be missed: another process leads between two of them.

Source: contract C20.
"""

from __future__ import annotations

import threading
from typing import Protocol

from datasync.runtime.logs import get_logger

log = get_logger(__name__)


class Leader(Protocol):
    """An object that knows whether this process leads, such as the result of ``store.campaign``.

    If it has a ``token`` as well, which differs from one election to the next, no election is missed; without it, one
    within a quarter of a second after a loss may be.

    Threads: any; both must return at once.
    """

    @property
    def is_leader(self) -> bool:
        """False as soon as another process may lead."""


class Leading:
    """The leadership that the threads of the reconciler *name* see; without a *leader*, this process always leads.

    Threads: any; no lock is held while the leader is asked.
    """

    def __init__(self, leader: Leader | None, name: str) -> None:
        self.leader = leader
        self._name = name
        self._lock = threading.RLock()  # guards all below; an RLock, because a finalizer may call in
        self._term: object = None  # the token of the present one; None while this process does not lead
        self._looks = self._latest = 0

    def __bool__(self) -> bool:
        """True if this process led when somebody looked last."""
        return self.leader is None or self._term is not None

    def look(self) -> tuple[bool, bool]:
        """Ask the leader. Return whether this process leads; and True once after each election."""
        if self.leader is None:
            return True, False
        with self._lock:
            self._looks += 1
            look = self._looks
        term = self._ask(self.leader)
        with self._lock:
            known, self._latest = self._latest, max(look, self._latest)
            if term is None:  # also of an old look: it may be the only one that saw the loss
                self._term = None
                return False, False
            if look < known:  # another thread knows better
                return self._term is not None, False
            elected, self._term = term != self._term, term
        if elected:
            log.info("%s: this process leads, and calls every key", self._name)
        return True, elected

    def _ask(self, leader: Leader) -> object:
        """Return what tells this term of office from others; None when this process does not lead, or may not."""
        try:
            return (getattr(leader, "token", None),) if leader.is_leader else None
        except Exception as error:
            log.warning("%s: the leader's state is not known: %s", self._name, type(error).__name__)
            return None
