"""Tests of ``datasync.kvdbsync.local``."""
