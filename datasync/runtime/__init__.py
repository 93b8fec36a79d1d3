"""Threads, timers and their clock, timeouts, backoff, sockets, files and tokens."""
