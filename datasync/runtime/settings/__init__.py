"""Settings of a driver: from a file, a URL or keyword arguments to a dataclass."""
