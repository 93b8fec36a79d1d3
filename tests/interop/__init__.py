"""datasync and programs that share no code with it."""
