"""Tests of ``datasync.examples``: every example runs."""
