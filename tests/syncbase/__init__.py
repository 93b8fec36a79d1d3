"""Tests of ``datasync.syncbase``."""
