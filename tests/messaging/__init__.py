"""Tests of ``datasync.messaging``: brokers of messages and the multiplexer."""
