"""Commands of the user that run beside a store: supervised, given its keys, stopped before a lock can end."""
