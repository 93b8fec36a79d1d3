"""Tests of ``datasync.resync``."""
