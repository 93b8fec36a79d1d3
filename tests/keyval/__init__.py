"""Tests of ``datasync.keyval``."""
