"""Tests of the ``datasync`` command."""
