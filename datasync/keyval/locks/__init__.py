"""Locks, semaphores and elections over the leases of a store."""
