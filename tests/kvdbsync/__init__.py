"""Tests of ``datasync.kvdbsync``."""
