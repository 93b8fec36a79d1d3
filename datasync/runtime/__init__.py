"""What runs, waits and ends: threads, timers, backoff, sockets, files, tokens."""
