"""Tests of ``datasync.msgsync``: a topic as a transport."""
