"""Tests of what runs, waits and ends."""
