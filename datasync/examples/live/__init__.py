"""Live values: flags, settings, and writers that wait for their own writes."""
