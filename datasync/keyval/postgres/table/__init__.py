"""An application's own table as a read-only store. Its names for users are in ``datasync.keyval.postgres``."""

__all__: list[str] = []
