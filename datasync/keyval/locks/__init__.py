"""Locks, semaphores and elections over the leases of a store."""

from datasync.keyval.locks.leadership import Leadership
from datasync.keyval.locks.lock import Lock

__all__ = ["Leadership", "Lock"]
