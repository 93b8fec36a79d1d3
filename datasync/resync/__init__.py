"""Asks everybody, in the order of registration, to start over from the full state."""

from datasync.resync.api import Registration, ResyncOutcome, ResyncReport, ResyncResult, ResyncStatus, StatusEvent
from datasync.resync.orchestrator import RESYNC_ACCEPT_TIMEOUT, RESYNC_ACK_TIMEOUT, Plugin

__all__ = [
    # The orchestrator
    "Plugin",
    "RESYNC_ACCEPT_TIMEOUT",
    "RESYNC_ACK_TIMEOUT",
    # What takes part gets
    "Registration",
    "StatusEvent",
    "ResyncStatus",
    # What the one who asks gets
    "ResyncReport",
    "ResyncResult",
    "ResyncOutcome",
]
