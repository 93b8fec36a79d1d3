"""Redis and Valkey as a store: ``datasync.keyval.connect("redis://host:6379/0")``, or ``RedisStore(RedisConfig(...))``.

Needs the extra ``redis``: ``pip install 'datasync-kv[redis]'``.
"""

from datasync.errors import MissingExtraError

try:
    import redis as _redis  # noqa: F401
except ImportError as error:  # pragma: no cover - the extra installs it
    raise MissingExtraError("redis", "redis") from error

from datasync.keyval.redis.config import RedisConfig, read_options
from datasync.keyval.redis.store import RedisStore

__all__ = [
    # the store
    "RedisStore",
    # its settings
    "RedisConfig",
    "read_options",
]
