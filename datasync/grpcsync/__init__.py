"""Changes pushed over gRPC: an adapter for an existing server, a server, and a client.

The protocol is cn-infra's ``msg.DataMsgService``.

Needs the extra ``grpc``: ``pip install 'datasync-kv[grpc]'``.
"""

from datasync.errors import MissingExtraError
from datasync.runtime.grpcio import check_grpc as _check_grpc  # noqa: F401 - before grpc itself

try:
    import grpc as _grpc  # noqa: F401
except ImportError as error:  # pragma: no cover - the extra brings it
    raise MissingExtraError("grpc", "grpcio") from error

from datasync.grpcsync.client.client import Client
from datasync.grpcsync.error_codes import Result
from datasync.grpcsync.limits import Limits
from datasync.grpcsync.server.adapter import Adapter
from datasync.grpcsync.server.server import Server, serve
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
    # Status and results
    "AdapterStatus",
    "ClientStatus",
    "Result",
]
