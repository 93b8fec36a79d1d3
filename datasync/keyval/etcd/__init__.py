"""etcd v3 as a store: ``datasync.keyval.connect("etcd://host:2379")``, or ``EtcdStore(EtcdConfig(...))``.

Needs the extra ``etcd``: ``pip install 'datasync-kv[etcd]'``.
"""

from datasync.errors import MissingExtraError
from datasync.runtime.grpcio import check_grpc as _check_grpc  # noqa: F401 - before grpc itself

try:
    import grpc as _grpc  # noqa: F401
except ImportError as error:  # pragma: no cover - the extra installs it
    raise MissingExtraError("etcd", "grpcio") from error

from datasync.keyval.etcd.config import EtcdConfig, load_file, read_options
from datasync.keyval.etcd.store import EtcdStore

__all__ = [
    # the store
    "EtcdStore",
    # its settings
    "EtcdConfig",
    "load_file",
    "read_options",
]
