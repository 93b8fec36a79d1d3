"""Consul as a store: ``datasync.keyval.connect("consul://host:8500")``, or ``ConsulStore(ConsulConfig(...))``.

Needs the extra ``consul``: ``pip install 'datasync-kv[consul]'``.
"""

from datasync.errors import MissingExtraError

try:
    import urllib3 as _urllib3  # noqa: F401 - a missing extra is reported here, by its name
except ImportError as error:  # pragma: no cover - the extra installs it
    raise MissingExtraError("consul", "urllib3") from error

from datasync.keyval.consul.config import ConsulConfig, read_options
from datasync.keyval.consul.store import ConsulStore

__all__ = [
    # the store
    "ConsulStore",
    # its settings
    "ConsulConfig",
    "read_options",
]
