"""Tests of ``datasync.syncbase.msg``."""
