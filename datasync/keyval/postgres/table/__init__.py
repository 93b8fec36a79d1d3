"""An application's own table as a read-only store."""
