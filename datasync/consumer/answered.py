"""Waiting for what a consumer's own registration has answered.

Source: contract C21.
"""

from __future__ import annotations

from datasync.api import WatchRegistration
from datasync.commits import HasRevision
from datasync.errors import UnsupportedError


def wait_answered(
    registration: WatchRegistration, name: str, revision: int | HasRevision | None, timeout: float
) -> None:
    """Wait until the subscriber *name* of *registration* has accepted everything up to *revision*.

    Raises ``UnsupportedError`` if its watcher cannot tell, and otherwise as the registration.
    """
    wait = getattr(registration, "wait_synced", None)
    if wait is None:
        raise UnsupportedError(f"{name!r}: a {type(registration).__name__} cannot wait for its subscriber")
    wait(revision, timeout)
