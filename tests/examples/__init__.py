"""Tests of ``datasync.examples``: each is run."""
