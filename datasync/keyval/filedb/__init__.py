"""Files as a store: ``datasync.keyval.connect("file:///etc/agent")``, or ``FileStore("/etc/agent")``.

Needs the extra ``file``: ``pip install 'datasync-kv[file]'``.
"""

from datasync.errors import MissingExtraError

try:
    import yaml as _yaml  # noqa: F401
except ImportError as error:  # pragma: no cover - the extra installs it
    raise MissingExtraError("file", "PyYAML") from error

from datasync.keyval.filedb.config import FileConfig, read_options
from datasync.keyval.filedb.store import FileStore
from datasync.keyval.filedb.writable import WritableFileStore

__all__ = [
    # the stores
    "FileStore",
    "WritableFileStore",
    # their settings
    "FileConfig",
    "read_options",
]
