"""Changes pushed over gRPC: an adapter for a server, a server, and a client.

The wire is cn-infra's ``msg.DataMsgService``.

Needs the extra ``grpc``: ``pip install 'datasync[grpc]'``.
"""

from datasync.errors import MissingExtraError
from datasync.grpcio import check_grpc as _check_grpc  # noqa: F401 - before grpc itself

try:
    import grpc as _grpc  # noqa: F401
except ImportError as error:  # pragma: no cover - the extra brings it
    raise MissingExtraError("grpc", "grpcio") from error

from datasync.grpcsync.adapter import Adapter
from datasync.grpcsync.client import Client
from datasync.grpcsync.limits import Limits
from datasync.grpcsync.results import Result
from datasync.grpcsync.server import Server, serve
from datasync.grpcsync.status import AdapterStatus, ClientStatus
from datasync.grpcsync.tls import ClientTLS, ServerTLS

__all__ = [
    # Receiving
    "Adapter",
    "Server",
    "serve",
    # Sending
    "Client",
    # Settings
    "ClientTLS",
    "Limits",
    "ServerTLS",
    # What comes back
    "AdapterStatus",
    "ClientStatus",
    "Result",
]
