"""Makes all registrations start over from the full state, in their order."""

from datasync.resync.api import (
    ResyncOutcome,
    ResyncRegistration,
    ResyncReport,
    ResyncResult,
    ResyncStatus,
    StatusEvent,
)
from datasync.resync.orchestrator import RESYNC_ACCEPT_TIMEOUT, RESYNC_ACK_TIMEOUT, Plugin

__all__ = [
    # The orchestrator
    "Plugin",
    "RESYNC_ACCEPT_TIMEOUT",
    "RESYNC_ACK_TIMEOUT",
    # For the registrations
    "ResyncRegistration",
    "StatusEvent",
    "ResyncStatus",
    # For the caller of do_resync()
    "ResyncReport",
    "ResyncResult",
    "ResyncOutcome",
]
