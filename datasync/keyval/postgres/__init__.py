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
from datasync.keyval.postgres.table.definition import TableDefinition
from datasync.keyval.postgres.table.diff import DiffTableStore
from datasync.keyval.postgres.table.store import TableStore

__all__ = [
    # the store
    "PostgresStore",
    # an application's own table
    "DiffTableStore",
    "TableDefinition",
    "TableStore",
    # its settings
    "PostgresConfig",
    "read_options",
]
