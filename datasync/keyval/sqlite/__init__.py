"""The embedded store: one SQLite file that several processes share."""

from datasync.keyval.sqlite.store import SQLiteStore

__all__ = ["SQLiteStore"]
