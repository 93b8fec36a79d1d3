"""PostgreSQL as a store: ``datasync.keyval.connect("postgres://host/database")``.

Needs the extra ``postgres``: ``pip install 'datasync-kv[postgres]'``.
"""

from datasync.errors import MissingExtraError

try:
    import psycopg as _psycopg  # noqa: F401
except ImportError as error:  # pragma: no cover - the extra installs it
    raise MissingExtraError("postgres", "psycopg") from error

from datasync.keyval.postgres.config import PostgresConfig, read_options
from datasync.keyval.postgres.store import PostgresStore

__all__ = [
    # the store
    "PostgresStore",
    # its settings
    "PostgresConfig",
    "read_options",
]
